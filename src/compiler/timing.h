// What all timing of kernels has in common.
#pragma once

#include <chrono>
#include <cstddef>

namespace pinion {

constexpr size_t kColdBytes = size_t{192} << 20;  // three times the largest cache of today's GPUs

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace pinion
