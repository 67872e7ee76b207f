// What all timing of kernels has in common.
#pragma once

#include <chrono>
#include <cstddef>

#include "backend/backend.h"

namespace pinion {

constexpr size_t kColdBytes = size_t{192} << 20;  // three times the largest cache of today's GPUs

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A weight of this kind where kernels read it, of dummy numbers. On a device with memory of its own they repeat every
// 8 MiB: making as many as a model has takes longer than timing them. Errors: exhausted.
Result<std::unique_ptr<Buffer>> timing_weight(const WeightSpec& spec, Device& device, Stream& stream);

}  // namespace pinion
