// The machine's measured ceilings, by which kernels and whole models are judged: a decode step cannot be faster than
// reading the weights once, a prefill not faster than its multiply-adds.
#pragma once

#include "backend/backend.h"

namespace pinion::cpu {

struct Ceilings {
  double read_gbps = 0;      // 10^9 bytes a second from memory, the best of several ways to read
  double f32_gflops = 0;     // 10^9 f32 operations a second, two per multiply-add, in registers
  double matrix_gflops = 0;  // 10^9 operations a second of the matrix units, as the linears use them: three products
                             // of bf16 for one of f32; 0 where there are none
  int read_threads = 0;      // the number of threads that read fastest
};

// Takes a second or two, and a buffer of `bytes`, which must be far larger than the caches. isa empty: the best.
// Errors: exhausted when the buffer cannot be had, invalid_argument for an unknown ISA.
Result<Ceilings> measure_ceilings(const DeviceOptions& options = {}, size_t bytes = size_t{2} << 30);

}  // namespace pinion::cpu
