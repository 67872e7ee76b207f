// Paged attention for any GPU since sm_80: mma.m16n8k16 over tiles of keys that cp.async brings, two in shared memory.
// A thread block takes 64 rows of one KV head, a row being (token, query head of the group), and walks their keys in
// chunks of 1,024. Chunks are merged in order, by the block that walks them or by a second kernel where several blocks
// share a sequence: the arithmetic of a row is the same either way, in any batch and with any chunking of its prompt.
#include <algorithm>
#include <cstring>

#include "backend/cuda/kernels/attention.h"
#include "backend/cuda/kernels/attention_task.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/copy_async.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mma_sync.h"

namespace pinion::cuda {
namespace {

constexpr int kRows = 64, kThreads = 128, kChunk = 1024;
constexpr size_t kMostWorkspace = size_t{64} << 20;  // beyond it a block walks all chunks of its rows itself

struct PortableParams {
  AttentionTask task;
  int32_t block_shift = -1;  // block_size = 1 << block_shift; -1: not a power of two
  int32_t slot_rows = 0;     // rows of a partial result
  int32_t max_slots = 0;     // partial results that fit the workspace
  int2* plan = nullptr;      // [seqs]: first slot (-1: not split), chunks
  float* partials = nullptr;
};

// A partial result: sums [slot_rows][head_dim], largest scores [slot_rows], sums of weights [slot_rows].
__host__ __device__ inline int64_t slot_floats(int slot_rows, int head_dim) {
  return static_cast<int64_t>(slot_rows) * (head_dim + 2);
}

template <int D>
struct Tile {
  static constexpr int kKeys = D > 128 ? 32 : 64;
  static constexpr int kStride = D + 8;  // elements: 16 bytes more, so that ldmatrix meets no bank twice
  static constexpr int kElements = kKeys * kStride;
  static constexpr size_t kShared = 2 * 2 * kElements * 2;  // two stages of K and V
};

struct Rows {  // of one sequence
  int first = 0, tokens = 0, past = 0;
  int rows = 0, tiles = 0, first_chunk = 0, chunks = 1;  // chunks > 1: may be divided among blocks
};

__device__ Rows rows_of(const AttentionTask& task, int s) {
  Rows r;
  r.first = task.seq_start[s], r.tokens = task.seq_start[s + 1] - r.first;
  const int context = task.context_len[s];
  r.past = context - r.tokens;
  r.rows = r.tokens * task.group;
  r.tiles = (r.rows + kRows - 1) / kRows;
  if (r.tiles == 1 && context > 0) {
    r.first_chunk = first_key(task.window, r.past) / kChunk;
    r.chunks = (context - 1) / kChunk - r.first_chunk + 1;
  }
  return r;
}

// Exclusive sums over the sequences of work items and of partial results, [seqs + 1] each, by the whole block.
__device__ void plan_items(const PortableParams& p, int* items, int* slots) {
  __shared__ int totals[2][kThreads];
  const AttentionTask& task = p.task;
  const int each = (task.seqs + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * each, task.seqs), end = min(begin + each, task.seqs);
  for (int split = p.max_slots > 0 ? 1 : 0;; split = 0) {
    int my_items = 0, my_slots = 0;
    for (int s = begin; s < end; ++s) {
      const Rows r = rows_of(task, s);
      const int chunks = split ? r.chunks : 1;
      items[s] = my_items, slots[s] = my_slots;
      my_items += r.tiles * task.kv_heads * chunks;
      my_slots += chunks > 1 ? task.kv_heads * chunks : 0;
    }
    totals[0][threadIdx.x] = my_items, totals[1][threadIdx.x] = my_slots;
    __syncthreads();
    int items_before = 0, slots_before = 0, all_slots = 0;
    for (int i = 0; i < kThreads; ++i) {
      if (i == threadIdx.x) items_before = my_items = all_slots == 0 ? 0 : 0;
      all_slots += totals[1][i];
    }
    my_items = 0;
    for (int i = 0; i < static_cast<int>(threadIdx.x); ++i) {
      items_before += totals[0][i], slots_before += totals[1][i];
    }
    for (int s = begin; s < end; ++s) items[s] += items_before, slots[s] += slots_before;
    if (threadIdx.x == kThreads - 1) {
      items[task.seqs] = items_before + totals[0][kThreads - 1];
      slots[task.seqs] = slots_before + totals[1][kThreads - 1];
    }
    __syncthreads();
    if (slots[task.seqs] <= p.max_slots) return;
    __syncthreads();
  }
}
