// The largest logit of a row and its lowest id as one number: larger logits give larger numbers, and among equal ones
// lower ids, so that integer maxima in any order and over any parts of the row find the row's. NaN is above everything,
// 0 stands for no logit. (backend/largest_logits.h)
#pragma once

#include "backend/largest_logits.h"

#ifdef __CUDACC__
namespace pinion::cuda {

__device__ inline uint32_t logit_key(float x) {
  if (isnan(x)) return ~0u;
  const uint32_t u = __float_as_uint(x == 0 ? 0.0f : x);  // -0 ties with 0
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ inline uint64_t packed_logit(uint32_t key, int32_t id) {
  return uint64_t{key} << 32 | ~static_cast<uint32_t>(id);
}

// Of a packed logit: the id, and whether a row whose largest it is is finite: no NaN, no +inf, and not -inf alone.
__device__ inline int32_t packed_id(uint64_t packed) {
  return static_cast<int32_t>(~static_cast<uint32_t>(packed));
}
__device__ inline bool packed_finite(uint64_t packed) {
  const auto key = static_cast<uint32_t>(packed >> 32);
  return key > logit_key(-INFINITY) && key < logit_key(INFINITY);
}

// What a part of the row found, for the row.
__device__ inline void leave_largest(const LargestLogits& to, int row, uint64_t packed) {
  if (packed != 0) atomicMax(reinterpret_cast<unsigned long long*>(to.found) + row, packed);
}

}  // namespace pinion::cuda
#endif
