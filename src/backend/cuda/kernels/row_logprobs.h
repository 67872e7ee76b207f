// The logprob and rank of a row's chosen token and its k best, by one thread block: a pass for the sum, the rank and
// the largest of 256 groups of ids; the k-th largest of these is a bound that at least k logits reach, and mostly few
// more, which a second pass collects and ranks by counting.
#pragma once

#include "backend/cuda/tile/largest_logit.h"
#include "backend/sampling.h"

namespace pinion::cuda {

inline constexpr int kLogprobGroups = 256, kLogprobList = 2048;

struct LogprobShared {
  uint64_t group[kLogprobGroups], list[kLogprobList];
  double sum[32];
  uint64_t bound;
  int32_t above[32], collected;
};

__device__ inline float logit_of(uint64_t packed) {
  const auto key = static_cast<uint32_t>(packed >> 32);
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// `most`: the row's largest logit; the row is finite. All threads of the block, kThreads of them.
template <int kThreads>
__device__ void write_logprobs(const float* logits, int32_t vocab, float most, int32_t token, int32_t top,
                               LogprobEntry* to, LogprobShared& s) {
  static_assert(kThreads % 32 == 0 && kThreads >= kLogprobGroups && kThreads % kLogprobGroups == 0);
  constexpr int kPerGroup = kThreads / kLogprobGroups;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int lane = thread % 32, warp = thread / 32;
  top = min(top, vocab);
  const float own = logits[token];
  const uint64_t chosen = packed_logit(logit_key(own), token);
  double sum = 0;
  int32_t above = 0;
  uint64_t best = 0;
#pragma unroll 4
  for (int32_t id = thread; id < vocab; id += kThreads) {
    const float x = logits[id];
    const uint64_t r = packed_logit(logit_key(x), id);
    sum += exp(static_cast<double>(x - most));
    above += r > chosen ? 1 : 0;
    best = max(best, r);
  }
  for (int d = 1; d < kPerGroup; d *= 2) best = max(best, __shfl_xor_sync(0xffffffffu, best, d));
  for (int d = 16; d > 0; d /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, d);
    above += __shfl_xor_sync(0xffffffffu, above, d);
  }
  if (thread % kPerGroup == 0) s.group[thread / kPerGroup] = best;
  if (lane == 0) s.sum[warp] = sum, s.above[warp] = above;
  if (thread == 0) s.bound = 0;
  __syncthreads();
  sum = 0, above = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += s.sum[w], above += s.above[w];
  const double log_sum = most + log(sum);
  if (thread == 0) to[0] = {1 + above, static_cast<float>(own - log_sum)};
  if (top <= 0) return;

  if (thread < kLogprobGroups) {
    const uint64_t mine = s.group[thread];
    int32_t above_it = 0;
    for (int g = 0; g < kLogprobGroups; ++g) above_it += s.group[g] > mine ? 1 : 0;
    if (mine > 0 && above_it == top - 1) s.bound = mine;  // fewer groups hold a logit: all logits are collected
  }
  __syncthreads();
  // Where the largest lie in few groups, more reach the bound than the list holds: a higher bound is found by halving.
  uint64_t bound = s.bound, low = 0, high = ~uint64_t{0};
  int32_t n = 0;
  for (;;) {
    if (thread == 0) s.collected = 0;
    __syncthreads();
#pragma unroll 4
    for (int32_t id = thread; id < vocab; id += kThreads) {
      const uint64_t r = packed_logit(logit_key(logits[id]), id);
      if (r < bound) continue;
      const int32_t place = atomicAdd(&s.collected, 1);
      if (place < kLogprobList) s.list[place] = r;
    }
    __syncthreads();
    n = s.collected;
    __syncthreads();
    if (n >= top && n <= kLogprobList) break;
    (n < top ? high : low) = bound;
    bound = low + (high - low) / 2;
  }
  for (int32_t i = thread; i < n; i += kThreads) {
    const uint64_t r = s.list[i];
    int32_t above_it = 0;
    for (int32_t j = 0; j < n; ++j) above_it += s.list[j] > r ? 1 : 0;
    if (above_it < top) {
      to[1 + above_it] = {packed_id(r), static_cast<float>(logit_of(r) - log_sum)};
    }
  }
}

}  // namespace pinion::cuda
