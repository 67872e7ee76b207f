// How the decode kernel's parts of a head become one: through global memory where blocks anywhere share a head, through
// shared memory within a cluster. A part is sums, and per row the largest score and the sum of weights.
#pragma once

#include "backend/cuda/kernels/attention_decode_walk.h"
#include "backend/cuda/ptx/cluster.h"

namespace pinion::cuda {

constexpr int kMostRows = 16;

// A partial result: sums [16][D], and (largest score, sum of weights) [16].
template <int D>
constexpr int kPartial = kMostRows*(D + 2);

// Four columns of a row, of all parts so far.
struct Merged {
  float largest = -INFINITY, sum = 0, all[4] = {};

  // N more parts: their sums, and (largest score, sum of weights).
  template <int N>
  __device__ void add(const float4 (&v)[N], const float2 (&stats)[N]) {
    float most = largest;
#pragma unroll
    for (int i = 0; i < N; ++i) most = fmaxf(most, stats[i].x);
    const float base = most == -INFINITY ? 0.0f : most, rescale = exp2_fast(largest - base);
    largest = most, sum *= rescale;
#pragma unroll
    for (float& x : all) x *= rescale;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float weight = exp2_fast(stats[i].x - base);
      sum = __fmaf_rn(stats[i].y, weight, sum);
      all[0] = __fmaf_rn(v[i].x, weight, all[0]), all[1] = __fmaf_rn(v[i].y, weight, all[1]);
      all[2] = __fmaf_rn(v[i].z, weight, all[2]), all[3] = __fmaf_rn(v[i].w, weight, all[3]);
    }
  }

  template <int Rows>
  __device__ void store_row(const AttentionTask& task, const Sequence& seq, int head, int row, int column) {
    const RowPlace at = place<Rows>(task, seq, head, row);
    const float factor = normalizer(task, at.head, largest, sum);
#pragma unroll
    for (float& x : all) x *= factor;
    store<4>(task.out, at.element(task, seq) + column, all);
  }
};

// parts: of all of a head's blocks, by number. They are read many at a time: what a merge costs is how often it waits
// for L2.
template <int D, int Rows>
__device__ void merge_partials(const AttentionTask& task, const Sequence& seq, int head, int parts, auto&& partial) {
  constexpr int kAtOnce = 8;
  const int rows = rows_in<Rows>(task, seq, head), quads = task.head_dim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < rows * quads; i += static_cast<int>(blockDim.x)) {
    const int row = i / quads, column = i % quads * 4;
    Merged merged;
    for (int from = 0; from < parts; from += kAtOnce) {
      float4 v[kAtOnce];
      float2 stats[kAtOnce];
#pragma unroll
      for (int b = 0; b < kAtOnce; ++b) {
        stats[b] = {-INFINITY, 0}, v[b] = {};
        if (from + b >= parts) continue;
        const float* part = partial(from + b);
        stats[b] = __ldcg(reinterpret_cast<const float2*>(part + kMostRows * D) + row);
        v[b] = __ldcg(reinterpret_cast<const float4*>(part + row * D + column));
      }
      merged.add(v, stats);
    }
    merged.store_row<Rows>(task, seq, head, row, column);
  }
}

// One more block has left its part of a head: how many had before. All of the block's writes come before it, and what
// the others wrote can be read after it; thread 0 asks, behind a barrier, for everyone.
__device__ inline unsigned take_ticket(unsigned* at) {
  unsigned before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(at) : "memory");
  return before;
}

// The blocks of a cluster have left their parts of a head in shared memory, [Rows][D] sums and [Rows] (largest score,
// sum of weights, -, -): each merges a share of the columns.
template <int D, int Rows, int kCluster>
__device__ void merge_cluster(const AttentionTask& task, const Sequence& seq, int head, uint32_t part, float* partial) {
  const int rows = rows_in<Rows>(task, seq, head), quads = task.head_dim / 4;
  const int each = (rows * quads + kCluster - 1) / kCluster;
  for (int n = static_cast<int>(threadIdx.x); n < each; n += static_cast<int>(blockDim.x)) {
    const int i = static_cast<int>(ptx::cluster_rank()) * each + n, row = i / quads, column = i % quads * 4;
    if (row >= rows) break;
    float4 v[kCluster];
    float2 stats[kCluster];
#pragma unroll
    for (int b = 0; b < kCluster; ++b) {
      const uint32_t at = ptx::peer_address(part, b);
      v[b] = ptx::load_peer(at + (row * D + column) * 4);
      const float4 s = ptx::load_peer(at + (Rows * D + row * 4) * 4);
      stats[b] = {s.x, s.y};
    }
    Merged merged;
    merged.add(v, stats);
    if (partial == nullptr) {
      merged.store_row<Rows>(task, seq, head, row, column);
      continue;
    }
    *reinterpret_cast<float4*>(partial + row * D + column) = {merged.all[0], merged.all[1], merged.all[2],
                                                              merged.all[3]};
    if (column == 0) reinterpret_cast<float2*>(partial + kMostRows * D)[row] = {merged.largest, merged.sum};
  }
}

}  // namespace pinion::cuda
