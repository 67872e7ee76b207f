// The measured ceilings of any device, for benches that judge a model by them.
#pragma once

#include "backend/backend.h"

namespace pinion {

struct DeviceCeilings {
  double read_gbps = 0;  // 10^9 bytes a second from memory
  // 10^9 operations a second, two per multiply-add; 0: not measured, or no such units.
  double f32_gflops = 0;     // multiply-adds in the CPU's registers
  double matrix_gflops = 0;  // bf16 products: a GPU's; on a CPU of f32 values, each as three of them
  int read_threads = 0;      // on the CPU: the number that read fastest
};

// `options` are those that the device was opened with; `bytes` is the size of the buffer that is read.
// Errors: exhausted; unsupported where nothing measures them.
Result<DeviceCeilings> measure_ceilings(Device& device, const DeviceOptions& options, size_t bytes);

}  // namespace pinion
