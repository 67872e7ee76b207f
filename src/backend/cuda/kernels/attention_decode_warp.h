// What one warp of the decode kernel does with units of keys and values that lie in shared memory: two products by
// mma.sync, and the online softmax between them.
#pragma once

#include "backend/cuda/kernels/attention_decode_walk.h"
#include "backend/cuda/ptx/mma_sync.h"

namespace pinion::cuda {

// The online softmax of one warp over its units of one head. Both products are computed transposed, keys and columns
// as the 16 rows of mma.sync and queries as its 8 columns: lane 4 g + t holds scores of keys g and g + 8, and results
// of columns g and g + 8, for queries 2t and 2t + 1.
//
// Weights are powers of two over a base that follows the largest score loosely: it is raised, and what has been added
// up is rescaled, only when a score lies kSlack above it. Nearly all units then need no maximum over the warp; weights
// up to 256 cost no precision, since sums are f32 and rounded weights have the same relative error anywhere.
template <class T, int D, int Rows>
struct WarpState {
  static constexpr int kTiles = Rows / 8;
  static constexpr float kSlack = 8, kNoBase = -1e30f;  // kNoBase: no key so far
  uint32_t q[kTiles][D / 16][2];
  float out[kTiles][D / 16][4], base[kTiles][2], sum[kTiles][2], slope[kTiles][2];
  int position[kTiles][2];

  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {
#pragma unroll
        for (float& x : out[n][j]) x = 0;
      }
      base[n][0] = base[n][1] = kNoBase, sum[n][0] = sum[n][1] = 0;
    }
  }

  // Of a row: what its weights are relative to, -inf without a key.
  __device__ float largest(int n, int i) const {
    return base[n][i] > kNoBase ? base[n][i] : -INFINITY;
  }

  __device__ void load_q(const AttentionTask& task, const Sequence& seq, int head) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const RowPlace mine = place<Rows>(task, seq, head, 8 * n + g);
      const auto* from = static_cast<const T*>(task.q.data) + (mine.head >= 0 ? mine.element(task, seq) : 0);
#pragma unroll
      for (int k = 0; k < D / 8; ++k) {
        const int column = 8 * k + 2 * t;
        q[n][k / 2][k % 2] =
            mine.head >= 0 && column < task.head_dim ? *reinterpret_cast<const uint32_t*>(from + column) : 0;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const RowPlace row = place<Rows>(task, seq, head, 8 * n + 2 * t + i);
        position[n][i] = row.head >= 0 ? seq.past + row.token : -1;
        slope[n][i] = task.alibi > 0 && row.head >= 0 ? slope_log2(task, row.head) : 0;
      }
    }
  }

  // One unit, which lies at `tile` in shared memory and starts with key `key0`.
  __device__ void attend(const AttentionTask& task, const Sequence& seq, uint32_t tile, int key0) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    float score[kTiles][4] = {}, more[kTiles][4] = {};  // two sums, so that products wait less for one another
    {
      const int row = lane & 15, vector = ((lane >> 4) ^ (row & 7)) * 16;
      const uint32_t from = tile + row * 128;
      constexpr int kAhead = D > 128 ? 4 : D / 16;
      static_assert(D / 16 % kAhead == 0);
#pragma unroll
      for (int first = 0; first < D / 16; first += kAhead) {
        uint32_t a[kAhead][4];
#pragma unroll
        for (int k = first; k < first + kAhead; ++k) {
          ptx::load_matrix_x4(a[k - first], from + k / 4 * 2 * kSlabBytes + (vector ^ (k % 4 * 32)));
        }
#pragma unroll
        for (int k = first; k < first + kAhead; ++k) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            ptx::mma_m16n8k16<T>(k % 2 == 0 ? score[n] : more[n], a[k - first], q[n][k][0], q[n][k][1]);
          }
        }
      }
    }
    // The first values are on their way while the softmax is computed.
    const int value_row = (lane & 7) + (lane >> 4) * 8, value_vector = (((lane >> 3) & 1) ^ (lane & 7)) * 16;
    const uint32_t values_at = tile + kSlabBytes + value_row * 128;
    constexpr int kEarly = 4;
    uint32_t early[kEarly][4];
#pragma unroll
    for (int j = 0; j < kEarly; ++j) {
      ptx::load_matrix_x4_transposed(early[j], values_at + j / 4 * 2 * kSlabBytes + (value_vector ^ (j % 4 * 32)));
    }
    const int low = first_key(task.window, seq.past), high = seq.past + seq.tokens;
    const bool masked = key0 + kUnitKeys > seq.past + 1 || (task.window > 0 && key0 <= high - 1 - task.window);
    const bool special = task.softcap > 0 || task.alibi > 0;
    const float scale = special ? 1.0f : task.score_scale;
    uint32_t weights[kTiles][2];
    bool grew = false;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) score[n][e] += more[n][e];
      if (special) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float x = score[n][e] * task.score_scale;
          if (task.softcap > 0) x = capped(task.softcap, x);
          const int distance = key0 + g + 8 * (e / 2) - position[n][e % 2];
          score[n][e] = __fmaf_rn(slope[n][e % 2], static_cast<float>(distance), x);
        }
      }
      if (masked) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = key0 + g + 8 * (e / 2), at = position[n][e % 2];
          if (key > at || (task.window > 0 && key <= at - task.window)) score[n][e] = -INFINITY;
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float most = fmaxf(score[n][i], score[n][i + 2]);
        grew |= __fmaf_rn(most, scale, -kSlack) > base[n][i];
      }
    }
    if (__any_sync(~0u, grew)) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float most = fmaxf(score[n][i], score[n][i + 2]);
          most = fmaxf(most, __shfl_xor_sync(~0u, most, 4));
          most = fmaxf(most, __shfl_xor_sync(~0u, most, 8));
          most = fmaxf(most, __shfl_xor_sync(~0u, most, 16));
          const float top = fmaxf(most * scale, base[n][i]);
          const float rescale = exp2_fast(base[n][i] - top);
          base[n][i] = top, sum[n][i] *= rescale;
#pragma unroll
          for (int j = 0; j < D / 16; ++j) out[n][j][i] *= rescale, out[n][j][i + 2] *= rescale;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        score[n][e] = exp2_fast(__fmaf_rn(score[n][e], scale, -base[n][e % 2]));
        sum[n][e % 2] += score[n][e];
      }
      weights[n][0] = ptx::transpose_matrix(ptx::pack<T>(score[n][0], score[n][1]));
      weights[n][1] = ptx::transpose_matrix(ptx::pack<T>(score[n][2], score[n][3]));
    }
    const auto add_values = [&](const uint32_t* keep) {
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {
        uint32_t a[4];
        if (j < kEarly) {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[i] = early[j < kEarly ? j : 0][i];
        } else {
          ptx::load_matrix_x4_transposed(a, values_at + j / 4 * 2 * kSlabBytes + (value_vector ^ (j % 4 * 32)));
        }
        if (keep != nullptr) {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[i] &= keep[i / 2];
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) ptx::mma_m16n8k16<T>(out[n][j], a, weights[n][0], weights[n][1]);
      }
    };
    if (key0 >= low && key0 + kUnitKeys <= high) {
      add_values(nullptr);
      return;
    }
    // What lies behind the last key or before the window may be anything, NaN too: no weight of 0 makes it vanish.
    uint32_t keep[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = key0 + 2 * t + 8 * i;
      keep[i] = (key >= low && key < high ? 0xffffu : 0u) | (key + 1 >= low && key + 1 < high ? 0xffff0000u : 0u);
    }
    add_values(keep);
  }
};

}  // namespace pinion::cuda
