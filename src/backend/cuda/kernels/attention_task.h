// What the attention kernels have in common: the problem as plain data, the score of a key, and the arithmetic of an
// online softmax whose parts are merged (Milakov and Gimelshein 2018; Dao et al. 2022). Scores are kept times log2(e),
// so that exp2 serves.
#pragma once

#include <cmath>
#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/ptx/mma_sync.h"
#include "backend/cuda/tile/values.h"

namespace pinion::cuda {

struct AttentionTask {
  ConstValues q;  // [tokens, heads * head_dim]
  Values out;     // [tokens, heads * head_dim]
  ConstValues sinks;
  const std::byte* cache = nullptr;  // KvView::base and what follows
  int64_t block_stride = 0, v_offset = 0;
  const int32_t *block_table = nullptr, *seq_start = nullptr, *context_len = nullptr, *row_seq = nullptr;
  int32_t max_blocks = 0, block_size = 0, tokens = 0, seqs = 0;
  int32_t heads = 0, kv_heads = 0, group = 0, head_dim = 0;
  int32_t window = 0;
  float score_scale = 1;                     // scale * log2(e); with a softcap scale / softcap
  float softcap = 0;                         // softcap * log2(e)
  float alibi = 0;                           // alibi * log2(e)
  int32_t alibi_first = 0, alibi_power = 1;  // the largest power of two that is at most alibi_heads
};

inline AttentionTask attention_task(const LaunchArgs& args) {
  constexpr double kLog2E = 1.4426950408889634;
  const auto& op = std::get<Attention>(*args.op);
  const BatchView& batch = *args.batch;
  const KvView& kv = batch.kv[op.layer];
  AttentionTask t{.q = {args.in[0].data, args.in[0].dtype},
                  .out = {args.out[0].data, args.out[0].dtype},
                  .sinks = {},
                  .cache = kv.base,
                  .block_stride = kv.block_stride,
                  .v_offset = kv.v_offset,
                  .block_table = kv.block_table,
                  .seq_start = batch.seq_start,
                  .context_len = batch.context_len,
                  .row_seq = batch.row_seq,
                  .max_blocks = kv.max_blocks,
                  .block_size = kv.block_size,
                  .tokens = batch.tokens,
                  .seqs = batch.seqs,
                  .heads = static_cast<int32_t>(op.heads),
                  .kv_heads = static_cast<int32_t>(op.kv_heads),
                  .group = static_cast<int32_t>(op.heads / op.kv_heads),
                  .head_dim = static_cast<int32_t>(op.head_dim),
                  .window = op.window,
                  .score_scale = static_cast<float>(op.softcap > 0 ? op.scale / op.softcap : op.scale * kLog2E),
                  .softcap = static_cast<float>(op.softcap * kLog2E),
                  .alibi = static_cast<float>(op.alibi * kLog2E),
                  .alibi_first = static_cast<int32_t>(op.alibi_first)};
  if (op.sinks) t.sinks = {args.weights[0].data, args.weights[0].dtype};
  while (2 * t.alibi_power <= op.alibi_heads) t.alibi_power *= 2;
  return t;
}

#ifdef __CUDACC__

// Whether a sequence's rows of this step are few enough that reading its cache takes longest: they then share tiles of
// 16 rows per KV head. The kernels that divide a batch between them agree on this.
__device__ inline bool few_rows(int tokens, int group) {
  return tokens == 1 || tokens * group <= 32;
}

// The rows that only pad a recorded step get zeros, by the whole grid: those of the sequences with few rows, or the
// others.
__device__ inline void clear_padding(const AttentionTask& task, bool few) {
  const int64_t width = int64_t{task.heads} * task.head_dim;
  for (int s = static_cast<int>(blockIdx.x); s < task.seqs; s += static_cast<int>(gridDim.x)) {
    const int first = task.seq_start[s], tokens = task.seq_start[s + 1] - first;
    if (task.context_len[s] != 0 || few_rows(tokens, task.group) != few) continue;
    for (int64_t i = threadIdx.x; i < tokens * width; i += blockDim.x) store(task.out, first * width + i, 0.0f);
  }
}

// Fragments of queries for mma.sync from two rows of q, at these elements (negative: no such row); columns from
// head_dim on are zero. All loads are under way before the first is used: the type is asked once.
template <class T, int D>
__device__ inline void load_queries(const AttentionTask& task, const int64_t (&element)[2], uint32_t (&q)[D / 16][4]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  constexpr DType kType = std::is_same_v<T, __nv_bfloat16> ? DType::bf16 : DType::f16;
  if (task.q.dtype == kType) {
    const auto* from = static_cast<const T*>(task.q.data);
#pragma unroll
    for (int i = 0; i < D / 4; ++i) {
      const int column = i / 4 * 16 + i % 4 / 2 * 8 + 2 * t;
      q[i / 4][i % 4] = element[i % 2] >= 0 && column < task.head_dim
                            ? *reinterpret_cast<const uint32_t*>(from + element[i % 2] + column)
                            : 0;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < D / 4; ++i) {
    const int column = i / 4 * 16 + i % 4 / 2 * 8 + 2 * t;
    float pair[2] = {0, 0};
    if (element[i % 2] >= 0 && column < task.head_dim) load<2>(task.q, element[i % 2] + column, pair);
    q[i / 4][i % 4] = ptx::pack<T>(pair[0], pair[1]);
  }
}

__device__ inline float exp2_fast(float x) {  // 2 ulp; 0 for -inf
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// alibi_slope() of graph/ops/attention.h, times log2(e).
__device__ inline float slope_log2(const AttentionTask& task, int head) {
  const int h = task.alibi_first + head, n = task.alibi_power;
  const float power = h < n ? -8.0f * (h + 1) / n : -4.0f * (2 * (h - n) + 1) / n;
  return task.alibi * exp2f(power);
}

// softcap * tanh(x), times log2(e): tanh from one exp2 and one division, with an absolute error under 1e-6.
__device__ inline float capped(float softcap, float x) {
  const float e = exp2_fast(2.8853900817779268f * x);
  return softcap * (1.0f - __fdividef(2.0f, 1.0f + fminf(e, 1e30f)));
}

// The first key that the query at `position` sees.
__device__ inline int first_key(int window, int position) {
  return window > 0 ? max(0, position - window + 1) : 0;
}

// The factors that bring two parts with largest scores a and b to their common largest score. Parts without a key have
// -inf and weigh nothing.
struct MergeWeights {
  float largest, a, b;
};
__device__ inline MergeWeights merge_weights(float a, float b) {
  const float largest = fmaxf(a, b), base = largest == -INFINITY ? 0.0f : largest;
  return {largest, exp2_fast(a - base), exp2_fast(b - base)};
}
// Every merge rounds alike, wherever it happens: results then do not depend on who merged.
__device__ inline float merge(const MergeWeights& w, float a, float b) {
  return __fmaf_rn(b, w.b, __fmul_rn(a, w.a));
}

// What the sum of values is multiplied with at the end, given the largest score and the sum of weights; 0 without keys.
__device__ inline float normalizer(const AttentionTask& task, int head, float largest, float sum) {
  if (task.sinks.data == nullptr) return sum > 0 ? __fdiv_rn(1.0f, sum) : 0.0f;
  float sink[1];
  load<1>(task.sinks, head, sink);
  const MergeWeights w = merge_weights(largest, sink[0] * 1.4426950408889634f);
  const float total = __fmaf_rn(sum, w.a, w.b);
  return total > 0 ? __fdiv_rn(w.a, total) : 0.0f;
}

#endif

}  // namespace pinion::cuda
