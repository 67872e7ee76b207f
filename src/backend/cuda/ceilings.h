// The GPU's measured ceilings, by which kernels and whole models are judged: a decode step cannot be faster than
// reading the weights once, a prefill not faster than its matrix products.
#pragma once

#include "backend/backend.h"

namespace pinion::cuda {

struct Ceilings {
  double read_gbps = 0;      // 10^9 bytes a second from memory: independent 16-byte loads that pass the caches by
  double matrix_gflops = 0;  // 10^9 bf16 operations a second of an 8192^3 product through cuBLASLt; 0: it is not there
};

// Takes a quarter of a second and `bytes` of the device's memory, which must be far more than its L2 holds.
// Errors: exhausted. Throws DeviceError.
Result<Ceilings> measure_ceilings(Device& device, size_t bytes = size_t{4} << 30);

}  // namespace pinion::cuda
