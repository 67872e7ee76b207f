// Paged attention for any GPU since sm_80: mma.m16n8k16 over tiles of keys that cp.async brings, two in shared memory.
// A thread block takes 64 rows of one KV head, a row being (token, query head of the group), and walks their keys in
// chunks of 1,024. Chunks are merged in order, by the block that walks them or by a second kernel where several blocks
// share a sequence: the arithmetic of a row is the same either way, in any batch and with any chunking of its prompt.
#include <algorithm>
#include <bit>

#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/attention.h"
#include "backend/cuda/kernels/attention_task.h"
#include "backend/cuda/kernels/kv_write.h"
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
  int32_t block_shift = -1;    // block_size = 1 << block_shift; -1: not a power of two
  bool skip_few_rows = false;  // those sequences are another kernel's
  int32_t slot_rows = 0;       // rows of a partial result
  int32_t max_slots = 0;       // partial results that fit the workspace
  int2* plan = nullptr;        // [seqs]: first slot (-1: not split), chunks
  float* partials = nullptr;
};

// A partial result: sums [slot_rows][head_dim], largest scores [slot_rows], sums of weights [slot_rows]. Every slot
// begins where four floats can be read at once.
__host__ __device__ inline int64_t slot_floats(int slot_rows, int head_dim) {
  return (static_cast<int64_t>(slot_rows) * (head_dim + 2) + 3) / 4 * 4;
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

__device__ Rows rows_of(const PortableParams& p, int s) {
  const AttentionTask& task = p.task;
  Rows r;
  r.first = task.seq_start[s], r.tokens = task.seq_start[s + 1] - r.first;
  if (p.skip_few_rows && few_rows(r.tokens, task.group)) return r;
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

// Exclusive sums over the sequences of work items and of partial results, [seqs + 1] each, by the whole block. Where
// the partial results would not fit the workspace, nothing is split.
__device__ void plan_items(const PortableParams& p, int* items, int* slots) {
  __shared__ int2 totals[kThreads];
  const AttentionTask& task = p.task;
  const int thread = static_cast<int>(threadIdx.x);
  const int each = (task.seqs + kThreads - 1) / kThreads;
  const int begin = min(thread * each, task.seqs), end = min(begin + each, task.seqs);
  for (bool split = p.max_slots > 0;; split = false) {
    int2 mine{0, 0};
    for (int s = begin; s < end; ++s) {
      const Rows r = rows_of(p, s);
      const int chunks = split ? r.chunks : 1;
      items[s] = mine.x, slots[s] = mine.y;
      mine.x += r.tiles * task.kv_heads * chunks;
      mine.y += chunks > 1 ? task.kv_heads * chunks : 0;
    }
    totals[thread] = mine;
    __syncthreads();
    int2 before{0, 0};
    for (int i = 0; i < thread; ++i) before.x += totals[i].x, before.y += totals[i].y;
    for (int s = begin; s < end; ++s) items[s] += before.x, slots[s] += before.y;
    if (thread == kThreads - 1) items[task.seqs] = before.x + mine.x, slots[task.seqs] = before.y + mine.y;
    __syncthreads();
    if (!split || slots[task.seqs] <= p.max_slots) return;
    __syncthreads();
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, D > 128 ? 1 : 2)
    attention_portable_kernel(const __grid_constant__ PortableParams p) {
  using Shape = Tile<D>;
  constexpr int kKeys = Shape::kKeys, kStride = Shape::kStride, kScoreTiles = kKeys / 8, kOutTiles = D / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  int* items = reinterpret_cast<int*>(shared + Shape::kShared);
  const AttentionTask& task = p.task;
  int* slots = items + task.seqs + 1;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const uint32_t tiles = ptx::shared_address(shared);

  ptx::launch_dependents();
  ptx::wait_dependencies();
  plan_items(p, items, slots);
  if (blockIdx.x == 0 && p.plan != nullptr) {
    for (int s = thread; s < task.seqs; s += kThreads) {
      const int count = slots[s + 1] - slots[s];
      p.plan[s] = count > 0 ? make_int2(slots[s], count / task.kv_heads) : make_int2(-1, 1);
    }
  }

  for (int item = static_cast<int>(blockIdx.x); item < items[task.seqs]; item += static_cast<int>(gridDim.x)) {
    int s = 0;
    for (int last = task.seqs; last - s > 1;) {  // the last sequence that begins at or before the item
      const int middle = (s + last) / 2;
      (items[middle] <= item ? s : last) = middle;
    }
    const Rows seq = rows_of(p, s);
    const bool split = slots[s + 1] > slots[s];
    const int chunks = split ? seq.chunks : 1, index = item - items[s];
    const int chunk = index % chunks, head = index / chunks % task.kv_heads;
    const int row0 = (seq.tiles - 1 - index / (chunks * task.kv_heads)) * kRows;  // the rows with most keys first
    const int last_token = (min(row0 + kRows, seq.rows) - 1) / task.group;
    const int first_position = seq.past + row0 / task.group, last_position = seq.past + last_token;
    const bool empty = seq.past + seq.tokens == 0;  // padding
    const int low = first_key(task.window, first_position), high = empty ? 0 : last_position + 1;
    const int begin = split ? max(low, (seq.first_chunk + chunk) * kChunk) : low;
    const int end = split ? min(high, (seq.first_chunk + chunk + 1) * kChunk) : high;

    // This lane's two rows.
    int position[2], query_head[2];
    int64_t element[2];  // of q and out
    float slope[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row0 + warp * 16 + g + 8 * i;
      const int token = row / task.group;
      query_head[i] = head * task.group + row % task.group;
      position[i] = row < seq.rows && !empty ? seq.past + token : -1;
      element[i] =
          row < seq.rows ? (static_cast<int64_t>(seq.first + token) * task.heads + query_head[i]) * task.head_dim : -1;
      if (task.alibi > 0) slope[i] = slope_log2(task, query_head[i]);
    }
    const bool warp_has_rows = row0 + warp * 16 < seq.rows;

    uint32_t q[D / 16][4];
    load_queries<T, D>(task, element, q);

    const int32_t* table = task.block_table + static_cast<int64_t>(s) * task.max_blocks;
    const auto request = [&](int tile, int stage) {
      constexpr int kVectors = D / 8;
      const uint32_t k_tile = tiles + stage * 4 * Shape::kElements, v_tile = k_tile + 2 * Shape::kElements;
      for (int i = thread; i < kKeys * kVectors; i += kThreads) {
        const int row = i / kVectors, column = i % kVectors * 8, key = tile * kKeys + row;
        const std::byte* from = task.cache;
        bool valid = key >= low && key < high && column < task.head_dim;
        if (valid) {
          const int page = p.block_shift >= 0 ? key >> p.block_shift : key / task.block_size;
          const int slot = key - page * task.block_size, block = table[page];
          valid = block >= 0;
          from += max(block, 0) * task.block_stride +
                  2 * ((static_cast<int64_t>(head) * task.block_size + slot) * task.head_dim + column);
        }
        const uint32_t at = 2 * (row * kStride + column);
        ptx::copy_async_16(k_tile + at, from, valid ? 16 : 0);
        ptx::copy_async_16(v_tile + at, from + (valid ? task.v_offset : 0), valid ? 16 : 0);
      }
      ptx::copy_async_commit();
    };

    float out[kOutTiles][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    float merged[kOutTiles][4], merged_largest[2] = {-INFINITY, -INFINITY}, merged_sum[2] = {0, 0};
    bool any_merged = false;
    const auto close_chunk = [&](bool last) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
      }
      if (last && !any_merged) return;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const MergeWeights w = merge_weights(merged_largest[i], largest[i]);
#pragma unroll
        for (int j = 0; j < kOutTiles; ++j) {
#pragma unroll
          for (int e = 2 * i; e < 2 * i + 2; ++e) {
            const float all = any_merged ? merge(w, merged[j][e], out[j][e]) : out[j][e];
            (last ? out[j][e] : merged[j][e]) = all;
            if (!last) out[j][e] = 0;
          }
        }
        const float all = merge(w, merged_sum[i], sum[i]);
        (last ? sum[i] : merged_sum[i]) = all;
        (last ? largest[i] : merged_largest[i]) = w.largest;
        if (!last) sum[i] = 0, largest[i] = -INFINITY;
      }
      any_merged = true;
    };

    const int first_tile = begin / kKeys, last_tile = (end + kKeys - 1) / kKeys;
    if (first_tile < last_tile) request(first_tile, 0);
    for (int tile = first_tile; tile < last_tile; ++tile) {
      const int stage = (tile - first_tile) & 1;
      if (tile + 1 < last_tile) {
        request(tile + 1, stage ^ 1);
        ptx::copy_async_wait<1>();
      } else {
        ptx::copy_async_wait<0>();
      }
      __syncthreads();
      if (warp_has_rows) {
        const uint32_t k_tile = tiles + stage * 4 * Shape::kElements, v_tile = k_tile + 2 * Shape::kElements;
        float score[kScoreTiles][4] = {};
        const uint32_t k_lane = k_tile + 2 * (((lane & 7) + (lane >> 4) * 8) * kStride + ((lane >> 3) & 1) * 8);
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
#pragma unroll
          for (int j = 0; j < kScoreTiles; j += 2) {
            uint32_t b[4];
            ptx::load_matrix_x4(b, k_lane + 2 * (j * 8 * kStride + k * 16));
            ptx::mma_m16n8k16<T>(score[j], q[k], b[0], b[1]);
            ptx::mma_m16n8k16<T>(score[j + 1], q[k], b[2], b[3]);
          }
        }
        const int key0 = tile * kKeys;
        const bool all_visible = key0 + kKeys <= first_position + 1 &&
                                 (task.window == 0 || key0 > last_position - task.window) && row0 + kRows <= seq.rows;
        float scale = task.score_scale;
        if (task.softcap > 0 || task.alibi > 0) {
#pragma unroll
          for (int j = 0; j < kScoreTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              float x = score[j][e] * scale;
              if (task.softcap > 0) x = capped(task.softcap, x);
              const int distance = key0 + 8 * j + 2 * t + (e & 1) - position[e / 2];
              score[j][e] = __fmaf_rn(slope[e / 2], static_cast<float>(distance), x);
            }
          }
          scale = 1;
        }
        if (!all_visible) {
#pragma unroll
          for (int j = 0; j < kScoreTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int key = key0 + 8 * j + 2 * t + (e & 1), at = position[e / 2];
              if (key > at || (task.window > 0 && key <= at - task.window)) score[j][e] = -INFINITY;
            }
          }
        }
        float top[2] = {-INFINITY, -INFINITY}, rescale[2], base[2];
#pragma unroll
        for (int j = 0; j < kScoreTiles; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) top[e / 2] = fmaxf(top[e / 2], score[j][e]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));
          top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 2));
          top[i] = fmaxf(top[i] * scale, largest[i]);
          base[i] = top[i] == -INFINITY ? 0.0f : top[i];
          rescale[i] = exp2_fast(largest[i] - base[i]);
          largest[i] = top[i];
          sum[i] *= rescale[i];
        }
        if (__any_sync(~0u, rescale[0] != 1 || rescale[1] != 1)) {
#pragma unroll
          for (int j = 0; j < kOutTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) out[j][e] *= rescale[e / 2];
          }
        }
#pragma unroll
        for (int j = 0; j < kScoreTiles; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            score[j][e] = exp2_fast(__fmaf_rn(score[j][e], scale, -base[e / 2]));
            sum[e / 2] += score[j][e];
          }
        }
        const uint32_t v_lane = v_tile + 2 * (((lane & 7) + ((lane >> 3) & 1) * 8) * kStride + (lane >> 4) * 8);
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
          const uint32_t a[4] = {ptx::pack<T>(score[2 * k][0], score[2 * k][1]),
                                 ptx::pack<T>(score[2 * k][2], score[2 * k][3]),
                                 ptx::pack<T>(score[2 * k + 1][0], score[2 * k + 1][1]),
                                 ptx::pack<T>(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
          for (int j = 0; j < kOutTiles; j += 2) {
            uint32_t b[4];
            ptx::load_matrix_x4_transposed(b, v_lane + 2 * (k * 16 * kStride + j * 8));
            ptx::mma_m16n8k16<T>(out[j], a, b[0], b[1]);
            ptx::mma_m16n8k16<T>(out[j + 1], a, b[2], b[3]);
          }
        }
        if (!split && (tile + 1) % (kChunk / kKeys) == 0 && tile + 1 < last_tile) close_chunk(false);
      }
      __syncthreads();  // the next request overwrites this stage
    }
    close_chunk(true);

    if (split) {
      float* slot = p.partials + (slots[s] + head * chunks + chunk) * slot_floats(p.slot_rows, task.head_dim);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = warp * 16 + g + 8 * i;
        if (element[i] < 0) continue;
#pragma unroll
        for (int j = 0; j < kOutTiles; ++j) {
          const int column = 8 * j + 2 * t;
          if (column >= task.head_dim) continue;
          *reinterpret_cast<float2*>(slot + row * task.head_dim + column) = {out[j][2 * i], out[j][2 * i + 1]};
        }
        if (t == 0) {
          slot[p.slot_rows * task.head_dim + row] = largest[i];
          slot[p.slot_rows * (task.head_dim + 1) + row] = sum[i];
        }
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (element[i] < 0) continue;
      const float factor = normalizer(task, query_head[i], largest[i], sum[i]);
#pragma unroll
      for (int j = 0; j < kOutTiles; ++j) {
        const int column = 8 * j + 2 * t;
        const float pair[2] = {out[j][2 * i] * factor, out[j][2 * i + 1] * factor};
        if (column < task.head_dim) store<2>(task.out, element[i] + column, pair);
      }
    }
  }
}

// One block a token: merges the chunks of every head of it, where blocks shared them.
__global__ void __launch_bounds__(kThreads) attention_merge_kernel(const __grid_constant__ PortableParams p) {
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const AttentionTask& task = p.task;
  const int token = static_cast<int>(blockIdx.x), s = task.row_seq[token];
  const int2 plan = p.plan[s];
  if (plan.x < 0) return;
  const int quads = task.head_dim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < task.heads * quads; i += kThreads) {
    const int head = i / quads, column = i % quads * 4;
    const int row = (token - task.seq_start[s]) * task.group + head % task.group;
    float all[4] = {}, largest = -INFINITY, sum = 0;
    for (int c = 0; c < plan.y; ++c) {
      const int64_t index = plan.x + head / task.group * plan.y + c;
      const float* slot = p.partials + index * slot_floats(p.slot_rows, task.head_dim);
      const float4 part = *reinterpret_cast<const float4*>(slot + row * task.head_dim + column);
      const MergeWeights w = merge_weights(largest, slot[p.slot_rows * task.head_dim + row]);
      const float part_sum = slot[p.slot_rows * (task.head_dim + 1) + row];
      all[0] = c == 0 ? part.x : merge(w, all[0], part.x), all[1] = c == 0 ? part.y : merge(w, all[1], part.y);
      all[2] = c == 0 ? part.z : merge(w, all[2], part.z), all[3] = c == 0 ? part.w : merge(w, all[3], part.w);
      sum = merge(w, sum, part_sum), largest = w.largest;
    }
    const float factor = normalizer(task, head, largest, sum);
#pragma unroll
    for (float& x : all) x *= factor;
    store<4>(task.out, (static_cast<int64_t>(token) * task.heads + head) * task.head_dim + column, all);
  }
}

using PortableLaunch = void (*)(const LaunchShape&, const PortableParams&, Stream&);

template <class T, int D>
void launch_as(const LaunchShape& shape, const PortableParams& p, Stream& stream) {
  LaunchShape all = shape;
  all.shared += Tile<D>::kShared;
  launch<attention_portable_kernel<T, D>>(all, p, stream);
}

template <class T>
PortableLaunch launch_for(int64_t head_dim) {
  if (head_dim <= 64) return launch_as<T, 64>;
  if (head_dim <= 96) return launch_as<T, 96>;
  if (head_dim <= 128) return launch_as<T, 128>;
  return launch_as<T, 256>;
}

std::string why_not(const Call& call, const DeviceInfo&) {
  const auto& op = std::get<Attention>(*call.op);
  if (call.kv_dtype != DType::bf16 && call.kv_dtype != DType::f16) return "reads a bf16 or f16 KV cache";
  // The matrix units multiply 16-bit queries: f32 ones would be rounded without being asked.
  if (call.values.in[0] != call.kv_dtype) return "takes queries of the cache's type";
  if (op.head_dim % 8 != 0 || op.head_dim > 256) return "takes head sizes that are multiples of 8 up to 256";
  if (op.heads * op.head_dim > 1 << 20) return "takes at most 2^20 columns of queries";
  return why_not_floats(call);
}

double estimate_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return attention_estimate_us(call, info, 0.5, 0.35);
}

size_t plan_bytes(int64_t seqs) {
  return (seqs * sizeof(int2) + 255) / 256 * 256;
}

size_t workspace(const Call& call, const Tuning&, const DeviceInfo&) {
  const auto& op = std::get<Attention>(*call.op);
  if (call.context <= kChunk) return 0;
  const int64_t rows = std::min<int64_t>(kRows, call.rows * (op.heads / op.kv_heads));
  const double slots = static_cast<double>(std::min(call.seqs, call.rows)) * op.kv_heads * (call.context / kChunk + 2);
  const double bytes = slots * slot_floats(static_cast<int>(rows), static_cast<int>(op.head_dim)) * sizeof(float);
  return plan_bytes(call.seqs) + static_cast<size_t>(std::min(bytes, static_cast<double>(kMostWorkspace)));
}

void launch_rows(const LaunchArgs& args, bool skip_few_rows, Stream& stream) {
  const auto& op = std::get<Attention>(*args.op);
  const BatchView& batch = *args.batch;
  PortableParams p{.task = attention_task(args), .skip_few_rows = skip_few_rows};
  const DType type = batch.kv[op.layer].dtype;
  if (std::has_single_bit(static_cast<uint32_t>(p.task.block_size))) {
    p.block_shift = std::countr_zero(static_cast<uint32_t>(p.task.block_size));
  }
  const int64_t longest = std::min<int64_t>(std::max(batch.max_seq_tokens, 1), batch.tokens) * p.task.group;
  p.slot_rows = static_cast<int32_t>(std::min<int64_t>(kRows, longest));
  const size_t plan = plan_bytes(batch.seqs), slot = slot_floats(p.slot_rows, p.task.head_dim) * sizeof(float);
  const bool split = batch.max_context > kChunk && args.workspace.size() >= plan + slot;
  if (split) {
    p.plan = reinterpret_cast<int2*>(args.workspace.data());
    p.partials = reinterpret_cast<float*>(args.workspace.data() + plan);
    p.max_slots = static_cast<int32_t>(std::min<size_t>((args.workspace.size() - plan) / slot, 1 << 24));
  }
  const int64_t tiles = static_cast<int64_t>(batch.tokens) * p.task.group / kRows + batch.seqs;
  const int64_t items = tiles * p.task.kv_heads * (split ? batch.max_context / kChunk + 2 : 1);
  const int64_t resident = int64_t{2} * cuda_stream(stream).device().multiprocessors;
  const auto start = type == DType::bf16 ? launch_for<__nv_bfloat16>(op.head_dim) : launch_for<__half>(op.head_dim);
  start({.grid = static_cast<unsigned>(std::min(items, resident)),
         .block = kThreads,
         .shared = 2 * sizeof(int) * (static_cast<size_t>(batch.seqs) + 1)},
        p, stream);
  if (split) {
    launch<attention_merge_kernel>({.grid = static_cast<unsigned>(batch.tokens), .block = kThreads}, p, stream);
  }
}

void launch_portable(const LaunchArgs& args, Stream& stream) {
  if (args.batch->tokens == 0) return;
  if (args.in.size() == 3) write_kv(args, stream);
  launch_rows(args, false, stream);
}

constexpr Kernel kPortable{.name = "cuda.attention.portable",
                           .op = OpKind::attention,
                           .batch_invariant = true,
                           .why_not = why_not,
                           .tunings = nullptr,
                           .estimate_us = estimate_us,
                           .workspace = workspace,
                           .launch = launch_portable};

}  // namespace

void launch_portable_prefill(const LaunchArgs& args, Stream& stream) {
  launch_rows(args, true, stream);
}

const Kernel& portable_attention() {
  return kPortable;
}

}  // namespace pinion::cuda
