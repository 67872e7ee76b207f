// What every linear kernel does with its sums: bias, the epilogue, rounding to the output's type.
#pragma once

#ifdef __CUDACC__
#include "backend/cuda/ptx/mma_sync.h"
#endif
#include "backend/cuda/tile/largest_logit.h"
#include "backend/cuda/tile/values.h"

namespace pinion::cuda {

struct LinearOutput {
  Values y;          // [tokens, out], or [tokens, out / 2] with gated_silu
  ConstValues bias;  // [out], or null
  int32_t out = 0, tokens = 0;
  bool gated_silu = false;  // rows 2i and 2i + 1 of the weight are gate i and up i; `out` is even
  // Not null: y are logits in f32 without a gate, and of tokens that are not `stored` the largest is left instead.
  LargestLogits largest;
};

#ifdef __CUDACC__
__device__ inline float gated_silu(float gate, float up) {
  return __fdividef(gate, 1 + __expf(-gate)) * up;  // e^-gate overflows to a quotient of 0, which is the limit
}

// The sums of N (2 or 4) output rows from `row` on, a multiple of N, for one token; rows past the end are dropped.
template <int N>
__device__ inline void store_rows(const LinearOutput& o, int token, int row, float (&v)[N]) {
  if (o.bias.data != nullptr) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (row + i < o.out) v[i] += load(o.bias, row + i);
    }
  }
  if (o.gated_silu) {
    const int64_t at = int64_t{token} * (o.out / 2) + row / 2;
    if (row + N <= o.out && o.out % (2 * N) == 0) {
      float gated[N / 2];
#pragma unroll
      for (int i = 0; i < N / 2; ++i) gated[i] = gated_silu(v[2 * i], v[2 * i + 1]);
      store<N / 2>(o.y, at, gated);
      return;
    }
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if (row + 2 * i + 1 < o.out) store(o.y, at + i, gated_silu(v[2 * i], v[2 * i + 1]));
    }
    return;
  }
  const int64_t at = int64_t{token} * o.out + row;
  if (row + N <= o.out && o.out % N == 0) {
    store<N>(o.y, at, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (row + i < o.out) store(o.y, at + i, v[i]);
  }
}
// Columns of sums for many tokens: four rows from `row` on (a multiple of 4) for tokens first, first + step, …
// `sum(token)` gives them as a float4. What all tokens share is settled once: with a few instructions a value less,
// this is what keeps the end of a kernel short. Out is y's type.
template <class Out, bool kGated, class Sum>
__device__ inline void store_columns(const LinearOutput& o, int row, int first, int step, const Sum& sum) {
  if (row >= o.out) return;
  if (row + 4 > o.out || o.out % 4 != 0) {  // ragged: y's rows are not aligned, or end within the four
    for (int token = first; token < o.tokens; token += step) {
      const float4 s = sum(token);
      float v[4] = {s.x, s.y, s.z, s.w};
      store_rows<4>(o, token, row, v);
    }
    return;
  }
  float bias[4] = {};
  if (o.bias.data != nullptr) {
#pragma unroll
    for (int i = 0; i < 4; ++i) bias[i] = load(o.bias, row + i);
  }
  const int64_t width = kGated ? o.out / 2 : o.out;
  Out* to = static_cast<Out*>(o.y.data) + first * width + (kGated ? row / 2 : row);
#pragma unroll 4
  for (int token = first; token < o.tokens; token += step, to += step * width) {
    const float4 s = sum(token);
    const float v[4] = {s.x + bias[0], s.y + bias[1], s.z + bias[2], s.w + bias[3]};
    if constexpr (kGated) {
      const float a = gated_silu(v[0], v[1]), b = gated_silu(v[2], v[3]);
      if constexpr (sizeof(Out) == 4) {
        *reinterpret_cast<float2*>(to) = {a, b};
      } else {
        *reinterpret_cast<uint32_t*>(to) = ptx::pack<Out>(a, b);
      }
    } else if constexpr (sizeof(Out) == 4) {
      *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
    } else {
      *reinterpret_cast<uint2*>(to) = {ptx::pack<Out>(v[0], v[1]), ptx::pack<Out>(v[2], v[3])};
    }
  }
}

// The same for y of type T or f32, as the parameters say.
template <class T, class Sum>
__device__ inline void store_columns(const LinearOutput& o, int row, int first, int step, const Sum& sum) {
  const bool f32 = o.y.dtype == DType::f32;
  if (o.gated_silu) {
    f32 ? store_columns<float, true>(o, row, first, step, sum) : store_columns<T, true>(o, row, first, step, sum);
  } else {
    f32 ? store_columns<float, false>(o, row, first, step, sum) : store_columns<T, false>(o, row, first, step, sum);
  }
}

// The largest of N logits from `row` on.
template <int N>
__device__ inline uint64_t largest_of_rows(const LinearOutput& o, int row, const float (&v)[N]) {
  uint64_t most = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (row + i >= o.out) break;
    const float x = o.bias.data != nullptr ? v[i] + load(o.bias, row + i) : v[i];
    most = max(most, packed_logit(logit_key(x), row + i));
  }
  return most;
}

// A head's sums in shared memory, sums[token * pitch + row - first_row] for tokens first, first + step, … and `rows`
// rows, by `warps` warps, a token each at a time: 32 tokens a warp at most. Neighbouring lanes leave what they found of
// neighbouring tokens together.
__device__ inline void finish_head(const LinearOutput& o, const float* sums, int pitch, int first_row, int rows,
                                   int first, int step, int warps) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tokens = (o.tokens - first + step - 1) / step, each = (tokens + warps - 1) / warps;
  const int count = min(each, tokens - warp * each);  // of this warp, and of lane j token j
  const int begin = first + step * warp * each, own = begin + step * lane;
  const uint32_t kept = __ballot_sync(~0u, lane < count && o.largest.stored[own] == 0);
  const int last = min(rows, o.out - first_row);
  uint64_t found = 0;
  for (int j = 0; j < count; ++j) {
    const int token = begin + step * j;
    const float* row_sums = sums + token * pitch;
    const auto logit = [&](int r) { return row_sums[r] + (o.bias.data != nullptr ? load(o.bias, first_row + r) : 0); };
    if ((kept >> j & 1) == 0) {
      float* to = static_cast<float*>(o.y.data) + int64_t{token} * o.out + first_row;
      for (int r = lane; r < last; r += 32) to[r] = logit(r);
      continue;
    }
    uint32_t most = 0;
    int id = INT32_MAX;
#pragma unroll 4
    for (int r = lane; r < last; r += 32) {
      if (const uint32_t key = logit_key(logit(r)); key > most) most = key, id = first_row + r;
    }
    const uint32_t key = __reduce_max_sync(~0u, most);
    id = __reduce_min_sync(~0u, most == key ? id : INT32_MAX);
    if (lane == j && key != 0) found = packed_logit(key, id);
  }
  if (kept >> lane & 1) leave_largest(o.largest, own, found);
}
#endif

}  // namespace pinion::cuda
