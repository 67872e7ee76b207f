// How the decode kernel divides a step: sequences of few rows, tiles of rows, and a list of units of 16 keys ordered by
// sequence and KV head, of which every thread block takes an even part; whole heads, where that is as good as even,
// since parts of heads have to be merged. All of it follows from the lengths in device memory. Rows is the number of
// rows of a tile, 8 or 16.
#pragma once

#include <climits>

#include "backend/cuda/kernels/attention_task.h"

namespace pinion::cuda {

constexpr int kUnitKeys = 16;
constexpr int kSlabBytes = kUnitKeys * 128;  // 64 columns of a unit, in swizzled rows of 128 bytes

struct Sequence {
  int first_row = 0, tokens = 0, past = 0, first_unit = 0, units = 0, heads = 0;  // heads: (KV head, tile of rows)
};

template <int Rows>
__device__ inline Sequence sequence(const AttentionTask& task, int s) {
  Sequence q;
  if (s >= task.seqs) return q;
  q.first_row = task.seq_start[s];
  q.tokens = task.seq_start[s + 1] - q.first_row;
  const int context = task.context_len[s];
  if (context == 0 || q.tokens == 0 || !few_rows(q.tokens, task.group)) return q;
  q.past = context - q.tokens;
  q.first_unit = first_key(task.window, q.past) / kUnitKeys;
  q.units = (context + kUnitKeys - 1) / kUnitKeys - q.first_unit;
  q.heads = task.kv_heads * ((q.tokens * task.group + Rows - 1) / Rows);
  return q;
}

// A block's part [begin, end) of the step's work, one head after another. Every head costs kHeadCost units beside those
// it has, for its queries and the merging of its parts.
constexpr int kHeadCost = 28;

template <int Rows>
struct Walk {
  int begin = 0, end = 0;
  int left = INT_MAX;                // heads from the current one on, where a block takes whole ones
  int s = 0, head = 0, head_at = 0;  // of the current head: where in the step's work it begins
  int first = 0, until = 0;          // the units of it that are this block's; there may be none
  Sequence seq;

  // Warp-wide: to the head that `begin` lies in.
  __device__ void seek(const AttentionTask& task) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int at = begin;
    for (int base = 0;; base += 32) {
      const Sequence q = sequence<Rows>(task, base + lane);
      const int mine = work_of(q);
      int sum = mine;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += other;
      }
      const unsigned past = __ballot_sync(~0u, sum > at);
      if (past != 0) {
        const int found = __ffs(static_cast<int>(past)) - 1;
        at -= __shfl_sync(~0u, sum - mine, found);
        s = base + found;
        break;
      }
      at -= __shfl_sync(~0u, sum, 31);
    }
    seq = sequence<Rows>(task, s);
    head = at / (seq.units + kHeadCost);
    head_at = begin - at % (seq.units + kHeadCost);
    clip();
  }

  // To head `index` of all, the first of `count` whole ones.
  __device__ void take_heads(const AttentionTask& task, int heads_each, int index, int count) {
    end = INT_MAX / 2, left = count;
    s = index / heads_each, head = index % heads_each;
    seq = sequence<Rows>(task, s);
    clip();
  }

  // To the next head; false when it is no more of this block's.
  __device__ bool next(const AttentionTask& task) {
    head_at += seq.units + kHeadCost;
    if (--left == 0 || head_at + kHeadCost >= end) return false;
    if (++head == seq.heads) {
      head = 0;
      do {
        seq = sequence<Rows>(task, ++s);
      } while (seq.units == 0);
    }
    clip();
    return true;
  }

  __device__ static int work_of(const Sequence& q) {
    return q.units > 0 ? (q.units + kHeadCost) * q.heads : 0;
  }

 private:
  __device__ void clip() {
    first = max(0, begin - head_at - kHeadCost);
    until = min(seq.units, end - head_at - kHeadCost);
  }
};

struct Work {
  int total = 0;
  int heads = 0;       // of all sequences, where each of the first ones has the same number and the others none; else 0
  int heads_each = 0;  // of such a sequence
  int longest = 0;     // units of one head
};

// Warp-wide.
template <int Rows>
__device__ inline Work all_work(const AttentionTask& task) {
  Work w;
  int active = 0, past = 0, least = INT_MAX;  // sequences with work, where the last of them lies, heads of one
  for (int s = static_cast<int>(threadIdx.x) % 32; s < task.seqs; s += 32) {
    const Sequence q = sequence<Rows>(task, s);
    w.total += Walk<Rows>::work_of(q);
    if (q.units == 0) continue;
    ++active, past = s + 1;
    w.longest = max(w.longest, q.units), w.heads_each = max(w.heads_each, q.heads), least = min(least, q.heads);
  }
  w.total = __reduce_add_sync(~0u, w.total);
  w.longest = __reduce_max_sync(~0u, w.longest);
  w.heads_each = __reduce_max_sync(~0u, w.heads_each);
  active = __reduce_add_sync(~0u, active), past = __reduce_max_sync(~0u, past), least = __reduce_min_sync(~0u, least);
  if (active == past && least == w.heads_each) w.heads = active * w.heads_each;
  return w;
}

// Whether `blocks` blocks that take whole heads end within a twentieth of an even division.
__device__ inline bool divides_into_heads(const Work& w, int blocks) {
  const int64_t busiest = static_cast<int64_t>((w.heads + blocks - 1) / blocks) * (w.longest + kHeadCost);
  return w.heads > 0 && 20 * busiest * blocks <= 21 * static_cast<int64_t>(w.total);
}

// Where row `row` of a tile lies in q and out; head < 0: there is no such row.
struct RowPlace {
  int token = 0, head = -1;
  __device__ int64_t element(const AttentionTask& task, const Sequence& seq) const {
    return (static_cast<int64_t>(seq.first_row + token) * task.heads + head) * task.head_dim;
  }
};

template <int Rows>
__device__ inline RowPlace place(const AttentionTask& task, const Sequence& seq, int head, int row) {
  const int tiles = seq.heads / task.kv_heads, index = head % tiles * Rows + row;
  if (index >= seq.tokens * task.group) return {};
  return {index / task.group, head / tiles * task.group + index % task.group};
}

template <int Rows>
__device__ inline int rows_in(const AttentionTask& task, const Sequence& seq, int head) {
  const int tiles = seq.heads / task.kv_heads;
  return min(Rows, seq.tokens * task.group - head % tiles * Rows);
}

}  // namespace pinion::cuda
