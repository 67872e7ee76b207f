// What every linear kernel does with its sums: bias, the epilogue, rounding to the output's type.
#pragma once

#include "backend/cuda/tile/values.h"

namespace pinion::cuda {

struct LinearOutput {
  Values y;          // [tokens, out], or [tokens, out / 2] with gated_silu
  ConstValues bias;  // [out], or null
  int32_t out = 0, tokens = 0;
  bool gated_silu = false;  // rows 2i and 2i + 1 of the weight are gate i and up i; `out` is even
};

#ifdef __CUDACC__
__device__ inline float gated_silu(float gate, float up) {
  return gate / (1 + __expf(-gate)) * up;
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
#endif

}  // namespace pinion::cuda
