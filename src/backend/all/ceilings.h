// The measured ceilings of any device, for benches that judge a model by them.
#pragma once

#include <string_view>

#include "backend/backend.h"

namespace pinion {

struct DeviceCeilings {
  double read_gbps = 0;         // 10^9 bytes a second from memory
  double gflops = 0;            // 10^9 operations a second of `arithmetic`, two per multiply-add
  std::string_view arithmetic;  // "f32": multiply-adds in the CPU's registers; "matrix": bf16 products on a GPU
  int read_threads = 0;         // on the CPU: the number that read fastest
};

// `options` are those that the device was opened with; `bytes` is the size of the buffer that is read.
// Errors: exhausted; unsupported where nothing measures them.
Result<DeviceCeilings> measure_ceilings(Device& device, const DeviceOptions& options, size_t bytes);

}  // namespace pinion
