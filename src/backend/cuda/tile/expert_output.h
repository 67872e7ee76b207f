// What every kernel of grouped linears does with its sums: the expert's bias, the epilogue, rounding, and the slot's
// place in the output.
#pragma once

#include "backend/cuda/tile/activation.h"
#include "backend/cuda/tile/values.h"
#include "graph/ops/moe_linear.h"

namespace pinion::cuda {

struct ExpertOutput {
  Values y;          // slot s begins at element s * slot_width()
  ConstValues bias;  // [experts, out], or null
  int32_t out = 0;   // rows of one expert's weight
  ExpertEpilogue epilogue = ExpertEpilogue::none;
  Activation act = Activation::silu;
  float limit = 0;

  __host__ __device__ int32_t slot_width() const { return epilogue == ExpertEpilogue::none ? out : out / 2; }
};

#ifdef __CUDACC__
__device__ inline float gated_expert(const ExpertOutput& o, float gate, float up) {
  if (o.epilogue == ExpertEpilogue::clamped) {
    const float g = fminf(gate, o.limit);
    return (fminf(fmaxf(up, -o.limit), o.limit) + 1) * __fdividef(g, 1 + __expf(-1.702f * g));
  }
  return activate(o.act, gate) * up;
}

// The sums of N (2 or 4) rows of the expert's weight from `row` on, a multiple of N, for one slot; rows past the end
// are dropped.
template <int N>
__device__ inline void store_expert_rows(const ExpertOutput& o, int64_t slot, int expert, int row, float (&v)[N]) {
  if (o.bias.data != nullptr) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (row + i < o.out) v[i] += load(o.bias, int64_t{expert} * o.out + row + i);
    }
  }
  const bool aligned = row + N <= o.out && o.out % (2 * N) == 0;
  if (o.epilogue != ExpertEpilogue::none) {
    const int64_t at = slot * (o.out / 2) + row / 2;
    float y[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) y[i] = gated_expert(o, v[2 * i], v[2 * i + 1]);
    if (aligned) return store<N / 2>(o.y, at, y);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if (row + 2 * i + 1 < o.out) store(o.y, at + i, y[i]);
    }
    return;
  }
  const int64_t at = slot * o.out + row;
  if (aligned) return store<N>(o.y, at, v);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (row + i < o.out) store(o.y, at + i, v[i]);
  }
}
#endif

}  // namespace pinion::cuda
