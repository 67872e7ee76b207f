// Paged attention of sequences with few query rows, bound by reading the cache: the heads of a group and the step's
// tokens of a sequence share one tile of 16 rows, so that K and V are read once. The step's work, a list of units of 16
// keys ordered by sequence and KV head, is divided evenly among the thread blocks of a fixed grid; every block finds
// its part from the lengths in device memory, so that a recorded launch serves any lengths. Within a block each warp
// takes every eighth unit and keeps a ring of tensor copies in flight without waiting for the others. A block whose
// part ends within a head leaves a partial result; the last one to finish merges them in order.
#include <algorithm>
#include <bit>

#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/attention.h"
#include "backend/cuda/kernels/attention_task.h"
#include "backend/cuda/kernels/kv_write.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/bulk_copy.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mbarrier.h"
#include "backend/cuda/ptx/mma_sync.h"
#include "backend/cuda/tile/kv_map.h"

namespace pinion::cuda {
namespace {

constexpr int kRows = 16, kUnitKeys = 16, kSlab = kUnitKeys * 128;  // a slab: 64 columns of a unit, 128-byte rows

struct DecodeParams {
  CUtensorMap pages;
  AttentionTask task;
  int32_t block_shift = 6;      // block_size = 1 << block_shift
  float* partials = nullptr;    // two per block: of the head it continues, of the head it leaves unfinished
  unsigned* tickets = nullptr;  // per block, zero between launches
};

template <int D>
struct Ring {
  static constexpr int kWarps = D > 128 ? 4 : 8, kThreads = 32 * kWarps;
  static constexpr int kSlabs = (D + 63) / 64, kBytes = 2 * kSlabs * kSlab;  // of a unit: slabs of K and V in turn
  static constexpr int kStages = 192 * 1024 / (kWarps * kBytes);             // as many bytes as can be in flight
  static constexpr int kExchange = kWarps * 4 * D;                           // floats: four rows of every warp's sums
  static constexpr size_t kShared =
      1024 + static_cast<size_t>(kWarps) * kStages * kBytes + kExchange * 4 + kWarps * kRows * 8 + kWarps * kStages * 8;
};

// A partial result: sums [16][D], largest scores [16], sums of weights [16].
template <int D>
constexpr int kPartial = kRows*(D + 2);

struct Sequence {
  int first_row = 0, tokens = 0, past = 0, first_unit = 0, units = 0, heads = 0;  // heads: (KV head, tile of rows)
};

__device__ Sequence sequence(const AttentionTask& task, int s) {
  Sequence q;
  if (s >= task.seqs) return q;
  q.first_row = task.seq_start[s];
  q.tokens = task.seq_start[s + 1] - q.first_row;
  const int context = task.context_len[s];
  if (context == 0 || q.tokens == 0 || !few_rows(q.tokens, task.group)) return q;
  q.past = context - q.tokens;
  q.first_unit = first_key(task.window, q.past) / kUnitKeys;
  q.units = (context + kUnitKeys - 1) / kUnitKeys - q.first_unit;
  q.heads = task.kv_heads * ((q.tokens * task.group + kRows - 1) / kRows);
  return q;
}

// A block's part [begin, end) of the step's work, one head after another. Every head costs kHeadCost units beside those
// it has, for its queries and the merging of its parts.
constexpr int kHeadCost = 12;

struct Walk {
  int begin = 0, end = 0;
  int s = 0, head = 0, head_at = 0;  // of the current head: where in the step's work it begins
  int first = 0, until = 0;          // the units of it that are this block's; there may be none
  Sequence seq;

  // Warp-wide: to the head that `begin` lies in.
  __device__ void seek(const AttentionTask& task) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int at = begin;
    for (int base = 0;; base += 32) {
      const Sequence q = sequence(task, base + lane);
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
    seq = sequence(task, s);
    head = at / (seq.units + kHeadCost);
    head_at = begin - at % (seq.units + kHeadCost);
    clip();
  }

  // To the next head; false when it is no more of this block's.
  __device__ bool next(const AttentionTask& task) {
    head_at += seq.units + kHeadCost;
    if (head_at + kHeadCost >= end) return false;
    if (++head == seq.heads) {
      head = 0;
      do {
        seq = sequence(task, ++s);
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

__device__ int total_work(const AttentionTask& task) {
  int sum = 0;
  for (int s = static_cast<int>(threadIdx.x) % 32; s < task.seqs; s += 32) {
    sum += Walk::work_of(sequence(task, s));
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  return sum;
}

// The rows that only pad a recorded step get zeros.
__device__ void clear_padding(const AttentionTask& task) {
  for (int s = static_cast<int>(blockIdx.x); s < task.seqs; s += static_cast<int>(gridDim.x)) {
    const int first = task.seq_start[s], tokens = task.seq_start[s + 1] - first;
    if (task.context_len[s] != 0 || !few_rows(tokens, task.group)) continue;
    const int64_t width = int64_t{task.heads} * task.head_dim;
    for (int64_t i = threadIdx.x; i < tokens * width; i += blockDim.x) store(task.out, first * width + i, 0.0f);
  }
}

// Where row `row` of a tile lies in q and out; head < 0: there is no such row.
struct RowPlace {
  int token = 0, head = -1;
  __device__ int64_t element(const AttentionTask& task, const Sequence& seq) const {
    return (static_cast<int64_t>(seq.first_row + token) * task.heads + head) * task.head_dim;
  }
};

__device__ RowPlace place(const AttentionTask& task, const Sequence& seq, int head, int row) {
  const int tiles = seq.heads / task.kv_heads, index = head % tiles * kRows + row;
  if (index >= seq.tokens * task.group) return {};
  return {index / task.group, head / tiles * task.group + index % task.group};
}

__device__ int rows_in(const AttentionTask& task, const Sequence& seq, int head) {
  const int tiles = seq.heads / task.kv_heads;
  return min(kRows, seq.tokens * task.group - head % tiles * kRows);
}

// The online softmax of one warp over its units of one head.
template <class T, int D>
struct WarpState {
  uint32_t q[D / 16][4];
  float out[D / 8][4], largest[2], sum[2], slope[2];
  int position[2];

  __device__ void clear() {
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
#pragma unroll
      for (float& x : out[j]) x = 0;
    }
    largest[0] = largest[1] = -INFINITY, sum[0] = sum[1] = 0;
  }

  __device__ void load_q(const AttentionTask& task, const Sequence& seq, int head) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    int64_t element[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const RowPlace row = place(task, seq, head, g + 8 * i);
      position[i] = row.head >= 0 ? seq.past + row.token : -1;
      slope[i] = task.alibi > 0 && row.head >= 0 ? slope_log2(task, row.head) : 0;
      element[i] = row.head >= 0 ? row.element(task, seq) : -1;
    }
    load_queries<T, D, false>(task, element, q);
  }

  // One unit, which lies at `tile` in shared memory and starts with key `key0`.
  __device__ void attend(const AttentionTask& task, const Sequence& seq, uint32_t tile, int key0) {
    const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4;
    float score[2][4] = {}, more[2][4] = {};  // two sums each, so that products wait less for one another
    {
      const int row = (lane & 7) + (lane >> 4) * 8, vector = (((lane >> 3) & 1) ^ (row & 7)) * 16;
      const uint32_t from = tile + row * 128;
      constexpr int kAhead = D > 128 ? 4 : D / 16;
      static_assert(D / 16 % kAhead == 0);
#pragma unroll
      for (int first = 0; first < D / 16; first += kAhead) {
        uint32_t b[kAhead][4];
#pragma unroll
        for (int k = first; k < first + kAhead; ++k) {
          ptx::load_matrix_x4(b[k - first], from + k / 4 * 2 * kSlab + (vector ^ (k % 4 * 32)));
        }
#pragma unroll
        for (int k = first; k < first + kAhead; ++k) {
          const uint32_t(&keys)[4] = b[k - first];
          ptx::mma_m16n8k16<T>(k % 2 == 0 ? score[0] : more[0], q[k], keys[0], keys[1]);
          ptx::mma_m16n8k16<T>(k % 2 == 0 ? score[1] : more[1], q[k], keys[2], keys[3]);
        }
      }
    }
    // The first values are on their way while the softmax is computed.
    const int value_row = lane & 15, value_vector = ((lane >> 4) ^ (value_row & 7)) * 16;
    const uint32_t values_at = tile + kSlab + value_row * 128;
    constexpr int kEarly = 4;
    uint32_t early[kEarly][4];
#pragma unroll
    for (int j = 0; j < kEarly; ++j) {
      ptx::load_matrix_x4_transposed(early[j], values_at + j / 4 * 2 * kSlab + (value_vector ^ (j % 4 * 32)));
    }
    float scale = task.score_scale;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) score[j][e] += more[j][e];
    }
    if (task.softcap > 0 || task.alibi > 0) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float x = score[j][e] * scale;
          if (task.softcap > 0) x = capped(task.softcap, x);
          score[j][e] =
              __fmaf_rn(slope[e / 2], static_cast<float>(key0 + 8 * j + 2 * t + (e & 1) - position[e / 2]), x);
        }
      }
      scale = 1;
    }
    const int low = first_key(task.window, seq.past), high = seq.past + seq.tokens;
    if (key0 + kUnitKeys > seq.past + 1 || (task.window > 0 && key0 <= high - 1 - task.window)) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = key0 + 8 * j + 2 * t + (e & 1), at = position[e / 2];
          if (key > at || (task.window > 0 && key <= at - task.window)) score[j][e] = -INFINITY;
        }
      }
    }
    float base[2];
    bool grew = false;
    float top[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = fmaxf(fmaxf(score[0][2 * i], score[0][2 * i + 1]), fmaxf(score[1][2 * i], score[1][2 * i + 1]));
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 2)) * scale;
      grew |= top[i] > largest[i];
      top[i] = fmaxf(top[i], largest[i]);
      base[i] = top[i] == -INFINITY ? 0.0f : top[i];
    }
    if (__any_sync(~0u, grew)) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float rescale = exp2_fast(largest[i] - base[i]);
        largest[i] = top[i], sum[i] *= rescale;
#pragma unroll
        for (int j = 0; j < D / 8; ++j) out[j][2 * i] *= rescale, out[j][2 * i + 1] *= rescale;
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        score[j][e] = exp2_fast(__fmaf_rn(score[j][e], scale, -base[e / 2]));
        sum[e / 2] += score[j][e];
      }
    }
    const uint32_t p[4] = {ptx::pack<T>(score[0][0], score[0][1]), ptx::pack<T>(score[0][2], score[0][3]),
                           ptx::pack<T>(score[1][0], score[1][1]), ptx::pack<T>(score[1][2], score[1][3])};
    // What lies behind the last key or before the window may be anything, NaN too: no weight of 0 makes it vanish.
    uint32_t keep[2] = {~0u, ~0u};
    const bool clean = key0 >= low && key0 + kUnitKeys <= high;
    if (!clean) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = key0 + 2 * t + 8 * i;
        keep[i] = (key >= low && key < high ? 0xffffu : 0u) | (key + 1 >= low && key + 1 < high ? 0xffff0000u : 0u);
      }
    }
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      uint32_t late[4];
      if (j >= kEarly) {
        ptx::load_matrix_x4_transposed(late, values_at + j / 4 * 2 * kSlab + (value_vector ^ (j % 4 * 32)));
      }
      const uint32_t(&b)[4] = j < kEarly ? early[j < kEarly ? j : 0] : late;
      ptx::mma_m16n8k16<T>(out[2 * j], p, b[0] & keep[0], b[1] & keep[1]);
      ptx::mma_m16n8k16<T>(out[2 * j + 1], p, b[2] & keep[0], b[3] & keep[1]);
    }
  }
};

template <int D>
__device__ void merge_partials(const DecodeParams& p, const Sequence& seq, int head, int first, int last) {
  const AttentionTask& task = p.task;
  const int rows = rows_in(task, seq, head), quads = task.head_dim / 4;
  const auto partial = [&](int block) { return p.partials + (2 * block + (block == first ? 1 : 0)) * kPartial<D>; };
  for (int i = static_cast<int>(threadIdx.x); i < rows * quads; i += static_cast<int>(blockDim.x)) {
    const int row = i / quads, column = i % quads * 4;
    float largest = -INFINITY;
#pragma unroll 8
    for (int b = first; b <= last; ++b) largest = fmaxf(largest, __ldcg(partial(b) + kRows * D + row));
    const float base = largest == -INFINITY ? 0.0f : largest;
    float all[4] = {}, sum = 0;
#pragma unroll 4
    for (int b = first; b <= last; ++b) {
      const float* part = partial(b);
      const float weight = exp2_fast(__ldcg(part + kRows * D + row) - base);
      const float4 v = __ldcg(reinterpret_cast<const float4*>(part + row * D + column));
      sum = __fmaf_rn(__ldcg(part + kRows * (D + 1) + row), weight, sum);
      all[0] = __fmaf_rn(v.x, weight, all[0]), all[1] = __fmaf_rn(v.y, weight, all[1]);
      all[2] = __fmaf_rn(v.z, weight, all[2]), all[3] = __fmaf_rn(v.w, weight, all[3]);
    }
    const RowPlace at = place(task, seq, head, row);
    const float factor = normalizer(task, at.head, largest, sum);
#pragma unroll
    for (float& x : all) x *= factor;
    store<4>(task.out, at.element(task, seq) + column, all);
  }
}

template <class T, int D>
__global__ void __launch_bounds__(Ring<D>::kThreads, 1)
    attention_decode_kernel(const __grid_constant__ DecodeParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using R = Ring<D>;
  extern __shared__ unsigned char raw[];
  __shared__ bool last_block;
  const AttentionTask& task = p.task;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  const uint32_t rings = (ptx::shared_address(raw) + 1023) / 1024 * 1024;  // swizzled copies want this alignment
  unsigned char* base = raw + (rings - ptx::shared_address(raw));
  const uint32_t ring = rings + warp * R::kStages * R::kBytes;
  float* exchange = reinterpret_cast<float*>(base + R::kWarps * R::kStages * R::kBytes);
  float2* stats = reinterpret_cast<float2*>(exchange + R::kExchange);  // [warps][16]: largest score, sum of weights
  const uint32_t full = ptx::shared_address(stats + R::kWarps * kRows) + warp * R::kStages * 8;

  if (lane == 0) {
    for (int i = 0; i < R::kStages; ++i) ptx::barrier_init(full + 8 * i, 1);
    ptx::barrier_init_fence();
  }
  __syncwarp();
  ptx::launch_dependents();

  // Lengths and block tables went up before the step's first kernel, and keys of earlier steps are older still: neither
  // waits for the kernel before this one.
  const int64_t total = total_work(task);
  const int64_t blocks = min(static_cast<int64_t>(gridDim.x), (total + R::kWarps - 1) / R::kWarps);
  Walk work;
  if (blocks > 0) {
    work.begin = static_cast<int>(min(blockIdx.x * total / blocks, total));
    work.end = static_cast<int>(min((blockIdx.x + 1) * total / blocks, total));
  }
  if (work.begin >= work.end) {
    ptx::wait_dependencies();
    clear_padding(task);
    return;
  }
  work.seek(task);

  Walk request = work;
  int unit = request.first + warp;  // of request's head: requested next
  int page = 0, row = 0;            // where it lies: the block, the KV head's row of the first key
  bool more = true;
  const int32_t* table = nullptr;
  const auto find_head = [&] {
    table = task.block_table + static_cast<int64_t>(request.s) * task.max_blocks;
    row = request.head / (request.seq.heads / task.kv_heads) * task.block_size;
  };
  const auto find_page = [&] {
    while (unit >= request.until) {
      more = request.next(task);
      if (!more) return;
      unit = request.first + warp;
      find_head();
    }
    page = table[((request.seq.first_unit + unit) * kUnitKeys) >> p.block_shift];
  };
  const auto request_unit = [&](int stage) {
    if (lane == 0) {
      const uint32_t to = ring + stage * R::kBytes, barrier = full + 8 * stage;
      const int slot = (request.seq.first_unit + unit) * kUnitKeys & (task.block_size - 1);
      ptx::barrier_expect(barrier, R::kBytes);
#pragma unroll
      for (int slab = 0; slab < R::kSlabs; ++slab) {
        ptx::tensor_copy_4d(to + slab * 2 * kSlab, &p.pages, 64 * slab, row + slot, 0, max(page, 0), barrier,
                            ptx::CacheHint::evict_first);
      }
    }
    __syncwarp();
    unit += R::kWarps;
    find_page();
  };
  find_head();
  find_page();
  int in_flight = 0;  // units requested before the wait: those that this step's kernels do not write
  while (in_flight < R::kStages && more && (request.seq.first_unit + unit + 1) * kUnitKeys <= request.seq.past) {
    request_unit(in_flight++);
  }
  ptx::wait_dependencies();
  while (in_flight < R::kStages && more) request_unit(in_flight++);
  clear_padding(task);

  WarpState<T, D> state;
  int stage = 0;
  uint32_t parity = 0;
  do {  // one head after another
    if (work.first >= work.until) continue;
    const bool starts = work.first == 0, ends = work.until == work.seq.units;
    state.clear();
    if (work.first + warp < work.until) state.load_q(task, work.seq, work.head);
    for (int next = work.first + warp; next < work.until; next += R::kWarps) {
      ptx::barrier_wait(full + 8 * stage, parity);
      state.attend(task, work.seq, ring + stage * R::kBytes, (work.seq.first_unit + next) * kUnitKeys);
      __syncwarp();
      if (more) request_unit(stage);
      if (++stage == R::kStages) stage = 0, parity ^= 1;
    }

    // The warps' parts become one, in the order of warps.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      state.sum[i] += __shfl_xor_sync(~0u, state.sum[i], 1);
      state.sum[i] += __shfl_xor_sync(~0u, state.sum[i], 2);
      if (t == 0) stats[warp * kRows + g + 8 * i] = {state.largest[i], state.sum[i]};
    }
    __syncthreads();
    float weight[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = -INFINITY;
#pragma unroll
      for (int w = 0; w < R::kWarps; ++w) largest = fmaxf(largest, stats[w * kRows + g + 8 * i].x);
      weight[i] = exp2_fast(state.largest[i] - (largest == -INFINITY ? 0.0f : largest));
    }
    const int rows = rows_in(task, work.seq, work.head);
    const int room = rows <= 4 ? 4 : rows <= 8 ? 8 : 16, columns = max(1, D / 8 * 4 / room) * 8;  // of a pass
    float* partial = p.partials + (2 * blockIdx.x + (starts ? 1 : 0)) * kPartial<D>;
    const bool whole = starts && ends;
    for (int first = 0; first < D; first += columns) {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        if (8 * j < first || 8 * j >= first + columns) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (g + 8 * i < rows) {
            *reinterpret_cast<float2*>(exchange + (warp * room + g + 8 * i) * columns + 8 * j - first + 2 * t) = {
                state.out[j][2 * i] * weight[i], state.out[j][2 * i + 1] * weight[i]};
          }
        }
      }
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < rows * columns / 2; i += R::kThreads) {
        const int row = i / (columns / 2), column = i % (columns / 2) * 2;
        if (first + column >= D) continue;
        float pair[2] = {0, 0};
#pragma unroll
        for (int w = 0; w < R::kWarps; ++w) {
          const float2 v = *reinterpret_cast<const float2*>(exchange + (w * room + row) * columns + column);
          pair[0] += v.x, pair[1] += v.y;
        }
        if (!whole) {
          *reinterpret_cast<float2*>(partial + row * D + first + column) = {pair[0], pair[1]};
        }
        if (whole || (first == 0 && column == 0)) {
          float largest = -INFINITY, sum = 0;
#pragma unroll
          for (int w = 0; w < R::kWarps; ++w) largest = fmaxf(largest, stats[w * kRows + row].x);
#pragma unroll
          for (int w = 0; w < R::kWarps; ++w) {
            const float2 s = stats[w * kRows + row];
            sum = __fmaf_rn(s.y, exp2_fast(s.x - (largest == -INFINITY ? 0.0f : largest)), sum);
          }
          if (whole) {
            const RowPlace to = place(task, work.seq, work.head, row);
            const float factor = normalizer(task, to.head, largest, sum);
            pair[0] *= factor, pair[1] *= factor;
            if (first + column < task.head_dim) store<2>(task.out, to.element(task, work.seq) + first + column, pair);
          } else {
            partial[kRows * D + row] = largest, partial[kRows * (D + 1) + row] = sum;
          }
        }
      }
      __syncthreads();
    }
    if (!whole) {  // blocks [from, to] share this head
      const int64_t units_at = work.head_at + kHeadCost, units_end = units_at + work.seq.units;
      const int from = static_cast<int>(((units_at + 1) * blocks - 1) / total);
      const int to = static_cast<int>((units_end * blocks - 1) / total);
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        last_block = atomicAdd(p.tickets + from, 1u) == static_cast<unsigned>(to - from);
        if (last_block) p.tickets[from] = 0;
        __threadfence();
      }
      __syncthreads();
      if (last_block) merge_partials<D>(p, work.seq, work.head, from, to);
    }
  } while (work.next(task));
#else
  __trap();  // compiled for another architecture, where hopper_attention is refused
#endif
}

using DecodeLaunch = void (*)(unsigned, const DecodeParams&, Stream&);

template <class T, int D>
void launch_as(unsigned grid, const DecodeParams& p, Stream& stream) {
  launch<attention_decode_kernel<T, D>>({.grid = grid, .block = Ring<D>::kThreads, .shared = Ring<D>::kShared}, p,
                                        stream);
}

template <class T>
DecodeLaunch launch_for(int64_t head_dim) {
  if (head_dim <= 64) return launch_as<T, 64>;
  if (head_dim <= 96) return launch_as<T, 96>;
  if (head_dim <= 128) return launch_as<T, 128>;
  return launch_as<T, 256>;
}

int64_t padded(int64_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : head_dim <= 128 ? 128 : 256;
}

}  // namespace

size_t decode_workspace(const Call& call, const DeviceInfo& info) {
  const auto& op = std::get<Attention>(*call.op);
  return sizeof(float) * 2 * info.threads * kRows * (padded(op.head_dim) + 2);
}

void launch_decode(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Attention>(*args.op);
  const KvView& kv = args.batch->kv[op.layer];
  const CudaStream& cuda = cuda_stream(stream);
  const unsigned grid = static_cast<unsigned>(cuda.device().multiprocessors);
  check(args.workspace.size() >= sizeof(float) * 2 * grid * kRows * (padded(op.head_dim) + 2),
        "the attention kernel's workspace is too small");
  check(grid <= CudaStream::kTickets, "a GPU has more multiprocessors than a stream has tickets");
  const DecodeParams p{.pages = kv_pair_map(kv, op.kv_heads, op.head_dim, kUnitKeys),
                       .task = attention_task(args),
                       .block_shift = std::countr_zero(static_cast<uint32_t>(kv.block_size)),
                       .partials = reinterpret_cast<float*>(args.workspace.data()),
                       .tickets = cuda.tickets()};
  (kv.dtype == DType::bf16 ? launch_for<__nv_bfloat16>(op.head_dim) : launch_for<__half>(op.head_dim))(grid, p, stream);
}

}  // namespace pinion::cuda
