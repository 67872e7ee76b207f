// Paged causal attention of prompts on Hopper's warpgroups, after FlashAttention-3 (Shah et al. 2024): a block takes
// 128 tokens of one query head; one warp brings queries and pages of keys and values by tensor copies, two warpgroups
// of 64 tokens each take turns, one multiplying while the other computes its softmax. Within a group the scores of the
// next tile are multiplied before the values of this one, so that the softmax hides behind both. Keys come last tile
// first: the tiles that need a mask are then the first ones. Blocks with most keys start first.
#include <algorithm>

#include "backend/cuda/kernels/attention.h"
#include "backend/cuda/kernels/attention_task.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/bulk_copy.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mbarrier.h"
#include "backend/cuda/ptx/mma_sync.h"
#include "backend/cuda/ptx/wgmma_attention.h"
#include "backend/cuda/tile/kv_map.h"

namespace pinion::cuda {
namespace {

constexpr int kGroupRows = 64, kTokens = 128, kKeys = 128, kThreads = 384, kStages = 2, kSlabKeys = kKeys * 128;

struct PrefillParams {
  CUtensorMap q, k, v;
  AttentionTask task;
  int32_t box_slots = 64;  // keys that one tensor copy brings: a page, or 64 of its slots
};

template <int D>
struct Shared {
  static constexpr int kSlabs = D / 64, kQuery = kGroupRows * D * 2, kTile = kKeys * D * 2;
  static constexpr int kBarriers = 5 + 4 * kStages;
  // Queries and results of both groups, stages of keys and values.
  static constexpr size_t kBytes = 1024 + 4 * kQuery + 2 * kStages * kTile + kBarriers * 8;
};

struct Item {  // 128 tokens of a sequence, one head
  int first_row = 0, tokens = 0, past = 0, s = 0, token0 = 0, head = 0;

  // Tiles of 128 keys that its tokens see.
  __device__ int first_tile(const AttentionTask& task) const { return first_key(task.window, past + token0) / kKeys; }
  __device__ int last_tile() const { return (past + min(token0 + kTokens, tokens) - 1) / kKeys; }
};

// The step's list of items: sequences in order, of each one its tiles of tokens from the last to the first, of each
// tile all heads. All members are warp-wide.
class ItemList {
 public:
  __device__ explicit ItemList(const AttentionTask& task) : task_(task) {
    read(0);
    kept_ = now_;
    int tiles = __shfl_sync(~0u, now_.sum, 31);
    for (int base = 32; base < task.seqs; base += 32) {
      read(base);
      tiles += __shfl_sync(~0u, now_.sum, 31);
    }
    size_ = tiles * task.heads;
  }
  __device__ int size() const { return size_; }

  __device__ Item operator[](int index) {
    Item item{.head = index % task_.heads};
    int tile = index / task_.heads;
    for (int base = 0;; base += 32) {
      if (base == 0) {
        now_ = kept_;
      } else {
        read(base);
      }
      const unsigned past = __ballot_sync(~0u, now_.sum > tile);
      if (past != 0) {
        const int found = __ffs(static_cast<int>(past)) - 1;
        item.s = base + found;
        item.first_row = __shfl_sync(~0u, now_.first, found);
        item.tokens = __shfl_sync(~0u, now_.tokens, found);
        item.past = __shfl_sync(~0u, now_.context, found) - item.tokens;
        item.token0 = (__shfl_sync(~0u, now_.sum, found) - 1 - tile) * kTokens;
        return item;
      }
      tile -= __shfl_sync(~0u, now_.sum, 31);
    }
  }

 private:
  struct Lane {  // a sequence a lane; sum: of tiles, this lane's included
    int first = 0, tokens = 0, context = 0, sum = 0;
  };
  __device__ void read(int base) {
    const int lane = static_cast<int>(threadIdx.x) % 32, s = base + lane;
    now_ = {};
    if (s < task_.seqs) {
      now_.first = task_.seq_start[s], now_.tokens = task_.seq_start[s + 1] - now_.first;
      now_.context = task_.context_len[s];
    }
    const bool mine = now_.context > 0 && !few_rows(now_.tokens, task_.group);
    now_.sum = mine ? (now_.tokens + kTokens - 1) / kTokens : 0;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, now_.sum, d);
      if (lane >= d) now_.sum += other;
    }
  }

  const AttentionTask& task_;
  Lane kept_, now_;  // of the first 32 sequences; of the last that were read
  int size_ = 0;
};

struct Barriers {
  uint32_t at;  // of the first
  __device__ uint32_t q_full(int group) const { return at + 8 * group; }
  __device__ uint32_t q_empty(int group) const { return at + 8 * (2 + group); }
  __device__ uint32_t k_full(int stage) const { return at + 8 * (4 + stage); }
  __device__ uint32_t k_empty(int stage) const { return at + 8 * (4 + kStages + stage); }
  __device__ uint32_t v_full(int stage) const { return at + 8 * (4 + 2 * kStages + stage); }
  __device__ uint32_t v_empty(int stage) const { return at + 8 * (4 + 3 * kStages + stage); }
  __device__ uint32_t patch() const { return at + 8 * (4 + 4 * kStages); }
};

// Which stage of a ring comes next, and the parity of the barrier phase to wait for.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// This block's item of a round. Items become shorter within a sequence: taking turns from both ends evens out who gets
// the longer ones.
__device__ int turn(int round) {
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

// The copying warp's walk through the items.
struct CopyState {
  Turn k{.parity = 1}, v{.parity = 1};  // the first round of empty stages is there without waiting
  uint32_t q_parity = 1, patch_parity = 0;
};

template <int D>
__device__ void copy_item(const PrefillParams& p, const Item& item, uint32_t q_at, uint32_t k_at, uint32_t v_at,
                          Barriers barriers, CopyState& state) {
  using S = Shared<D>;
  const AttentionTask& task = p.task;
  const int lane = static_cast<int>(threadIdx.x) % 32, kv_head = item.head / task.group;
  const int first = item.first_tile(task), last = item.last_tile();
  for (int group = 0; group < 2; ++group) {
    ptx::barrier_wait(barriers.q_empty(group), state.q_parity);
    if (lane == 0) {
      ptx::barrier_expect(barriers.q_full(group), S::kQuery);
      for (int slab = 0; slab < S::kSlabs; ++slab) {
        ptx::tensor_copy_3d(q_at + group * S::kQuery + slab * kGroupRows * 128, &p.q, 64 * slab, item.head,
                            item.first_row + item.token0 + group * kGroupRows, barriers.q_full(group),
                            ptx::CacheHint::evict_first);
      }
    }
  }
  state.q_parity ^= 1;
  const int context = item.past + item.tokens, oldest = first_key(task.window, item.past);
  const int boxes = kKeys / p.box_slots, box_bytes = p.box_slots * 128;
  const int32_t* table = task.block_table + static_cast<int64_t>(item.s) * task.max_blocks;
  // Lane i of the first `boxes`: its page of tile n; -1: nothing of it may be read.
  const auto page_of = [&](int n) {
    const int key = n * kKeys + lane * p.box_slots;
    if (lane >= boxes || n < first || key >= context || key + p.box_slots <= oldest) return -1;
    return table[key / task.block_size];
  };
  const auto request = [&](const CUtensorMap* map, int n, int page, uint32_t to, uint32_t barrier) {
    const unsigned live = __ballot_sync(~0u, page >= 0);
    if (lane == 0) ptx::barrier_expect(barrier, __popc(live) * box_bytes * S::kSlabs);
    __syncwarp();
    if (page < 0) return;
    const int key = n * kKeys + lane * p.box_slots, row = kv_head * task.block_size + key % task.block_size;
    for (int slab = 0; slab < S::kSlabs; ++slab) {
      ptx::tensor_copy_3d(to + slab * kSlabKeys + lane * box_bytes, map, 64 * slab, row, page, barrier,
                          ptx::CacheHint::evict_last);
    }
  };
  int next_page = page_of(last);
  for (int n = last; n >= first - 1; --n) {
    if (n >= first) {  // keys of tile n, then values of tile n + 1
      const int page = next_page;
      next_page = page_of(n - 1);
      ptx::barrier_wait(barriers.k_empty(state.k.stage), state.k.parity);
      request(&p.k, n, page, k_at + state.k.stage * S::kTile, barriers.k_full(state.k.stage));
      state.k.next();
    }
    const int m = n + 1;
    if (m > last) continue;
    const int values_page = page_of(m);
    ptx::barrier_wait(barriers.v_empty(state.v.stage), state.v.parity);
    const uint32_t to = v_at + state.v.stage * S::kTile;
    if (m * kKeys >= oldest && (m + 1) * kKeys <= context) {
      request(&p.v, m, values_page, to, barriers.v_full(state.v.stage));
    } else {
      // What lies behind the last key or before the window may be anything, NaN too, which no weight of 0 makes vanish.
      request(&p.v, m, values_page, to, barriers.patch());
      ptx::barrier_wait(barriers.patch(), state.patch_parity);
      state.patch_parity ^= 1;
      const int low = max(oldest - m * kKeys, 0), high = min(context - m * kKeys, kKeys);
      for (int i = lane; i < kKeys * 8; i += 32) {
        const int row = i / 8;
        if (row >= low && row < high) continue;
        for (int slab = 0; slab < S::kSlabs; ++slab) {
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to + slab * kSlabKeys + row * 128 + i % 8 * 16),
                       "r"(0)
                       : "memory");
        }
      }
      ptx::fence_async_shared();
      __syncwarp();
      if (lane == 0) ptx::barrier_arrive(barriers.v_full(state.v.stage));
    }
    state.v.next();
  }
}

// A warpgroup's walk through the items.
struct AttendState {
  Turn k, v;
  uint32_t q_parity = 0;
};

// 64 tokens from item.token0 + 64 group.
template <class T, int D>
__device__ void attend_item(const PrefillParams& p, const Item& item, int group, uint32_t q_at, uint32_t k_at,
                            uint32_t v_at, unsigned char* staging, Barriers barriers, AttendState& state) {
  using S = Shared<D>;
  const AttentionTask& task = p.task;
  const int thread = static_cast<int>(threadIdx.x) % 128, warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, t = lane % 4, row0 = warp * 16 + g, first = item.first_tile(task), last = item.last_tile();
  const int position0 = item.past + item.token0 + group * kGroupRows;
  const bool special = task.softcap > 0 || task.alibi > 0;
  const float slope = task.alibi > 0 ? slope_log2(task, item.head) : 0.0f;
  const float scale = special ? 1.0f : task.score_scale;

  float s[kKeys / 2], out[D / 2], largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, rescale[2];
  uint32_t weights[kKeys / 16][4];
#pragma unroll
  for (float& x : out) x = 0;

  const auto multiply_scores = [&](int stage) {
    const uint32_t q = q_at + group * S::kQuery, k = k_at + stage * S::kTile;
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      ptx::wgmma_64xNx16<T, kKeys>(s, ptx::wgmma_operand(q + i / 4 * kGroupRows * 128 + i % 4 * 32),
                                   ptx::wgmma_operand(k + i / 4 * kSlabKeys + i % 4 * 32), i > 0);
    }
    ptx::wgmma_commit();
  };
  const auto multiply_values = [&](int stage) {
    const uint32_t v = v_at + stage * S::kTile;
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      ptx::wgmma_values<T, D>(out, weights[i], ptx::wgmma_row_operand(v + i * 16 * 128, kSlabKeys));
    }
    ptx::wgmma_commit();
  };
  // Scores of tile n become weights, still in s; largest and sum follow, rescale says what out is to be multiplied
  // with.
  const auto softmax = [&](int n) {
    const int key0 = n * kKeys;
    if (special) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int key = key0 + i / 4 * 8 + 2 * t + (i & 1), at = position0 + row0 + (i & 2) * 4;
        float x = s[i] * task.score_scale;
        if (task.softcap > 0) x = capped(task.softcap, x);
        s[i] = __fmaf_rn(slope, static_cast<float>(key - at), x);
      }
    }
    const bool masked =
        key0 + kKeys > position0 + 1 || (task.window > 0 && key0 <= position0 + kGroupRows - 1 - task.window);
    if (masked) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int key = key0 + i / 4 * 8 + 2 * t + (i & 1), at = position0 + row0 + (i & 2) * 4;
        if (key > at || (task.window > 0 && key <= at - task.window)) s[i] = -INFINITY;
      }
    }
    float top[2] = {s[0], s[2]};
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) top[(i >> 1) & 1] = fmaxf(top[(i >> 1) & 1], s[i]);
    float base[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));
      top[i] = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 2));
      top[i] = fmaxf(top[i] * scale, largest[i]);
      base[i] = top[i] == -INFINITY ? 0.0f : top[i];
      rescale[i] = exp2_fast(largest[i] - base[i]);
      largest[i] = top[i], sum[i] *= rescale[i];
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      s[i] = exp2_fast(__fmaf_rn(s[i], scale, -base[(i >> 1) & 1]));
      sum[(i >> 1) & 1] += s[i];
    }
  };
  const auto keep_weights = [&] {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) weights[i][r] = ptx::pack<T>(s[8 * i + 2 * r], s[8 * i + 2 * r + 1]);
    }
  };

  const auto free = [&](uint32_t barrier) {
    if (thread == 0) ptx::barrier_arrive(barrier);
  };

  ptx::barrier_wait(barriers.q_full(group), state.q_parity);
  state.q_parity ^= 1;
  ptx::barrier_wait(barriers.k_full(state.k.stage), state.k.parity);
  multiply_scores(state.k.stage);
  ptx::wgmma_wait<0>();
  free(barriers.k_empty(state.k.stage));
  if (first == last) free(barriers.q_empty(group));
  state.k.next();
  softmax(last);
  keep_weights();
  if (group == 1 && last > first) ptx::named_barrier_arrive(1, 256);  // the first group goes first
  for (int n = last - 1; n >= first; --n) {
    ptx::barrier_wait(barriers.k_full(state.k.stage), state.k.parity);
    ptx::named_barrier_sync(1 + group, 256);  // this group's turn
    multiply_scores(state.k.stage);
    ptx::barrier_wait(barriers.v_full(state.v.stage), state.v.parity);
    multiply_values(state.v.stage);
    if (group == 0 || n > first) ptx::named_barrier_arrive(2 - group, 256);
    ptx::wgmma_wait<1>();
    free(barriers.k_empty(state.k.stage));
    if (n == first) free(barriers.q_empty(group));
    state.k.next();
    softmax(n);
    ptx::wgmma_wait<0>();
    free(barriers.v_empty(state.v.stage));
    state.v.next();
    keep_weights();
    if (__any_sync(~0u, rescale[0] < 1 || rescale[1] < 1)) {  // seldom after the first tiles
#pragma unroll
      for (int i = 0; i < D / 2; ++i) out[i] *= rescale[(i >> 1) & 1];
    }
  }
  ptx::barrier_wait(barriers.v_full(state.v.stage), state.v.parity);
  multiply_values(state.v.stage);
  ptx::wgmma_wait<0>();
  free(barriers.v_empty(state.v.stage));
  state.v.next();

  // Through shared memory, so that whole rows are written.
  unsigned char* staged = staging + group * S::kQuery;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
    sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
    const float factor = normalizer(task, item.head, largest[i], sum[i]);
    const int row = row0 + 8 * i;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      *reinterpret_cast<uint32_t*>(staged + j / 8 * kGroupRows * 128 + row * 128 + ((j % 8) ^ (row & 7)) * 16 + 4 * t) =
          ptx::pack<T>(out[4 * j + 2 * i] * factor, out[4 * j + 2 * i + 1] * factor);
    }
  }
  __syncwarp();
  constexpr int kVectors = D / 8;
  for (int i = lane; i < 16 * kVectors; i += 32) {
    const int row = warp * 16 + i / kVectors, vector = i % kVectors, token = item.token0 + group * kGroupRows + row;
    if (token >= item.tokens) continue;
    const uint4 v = *reinterpret_cast<const uint4*>(staged + vector / 8 * kGroupRows * 128 + row * 128 +
                                                    ((vector % 8) ^ (row & 7)) * 16);
    const int64_t element = (static_cast<int64_t>(item.first_row + token) * task.heads + item.head) * D + vector * 8;
    *reinterpret_cast<uint4*>(static_cast<T*>(task.out.data) + element) = v;
  }
  __syncwarp();  // the next item's results come there
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1) attention_prefill_kernel(const __grid_constant__ PrefillParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using S = Shared<D>;
  extern __shared__ unsigned char raw[];
  const AttentionTask& task = p.task;
  const uint32_t q_at = (ptx::shared_address(raw) + 1023) / 1024 * 1024;
  const uint32_t k_at = q_at + 4 * S::kQuery, v_at = k_at + kStages * S::kTile;
  unsigned char* staging = raw + (q_at - ptx::shared_address(raw)) + 2 * S::kQuery;
  const Barriers barriers{v_at + kStages * S::kTile};
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) ptx::barrier_init(barriers.q_full(i), 1), ptx::barrier_init(barriers.q_empty(i), 1);
    for (int i = 0; i < kStages; ++i) {
      ptx::barrier_init(barriers.k_full(i), 1), ptx::barrier_init(barriers.v_full(i), 1);
      ptx::barrier_init(barriers.k_empty(i), 2), ptx::barrier_init(barriers.v_empty(i), 2);
    }
    ptx::barrier_init(barriers.patch(), 1);
    ptx::barrier_init_fence();
  }
  ptx::launch_dependents();
  __syncthreads();
  ptx::wait_dependencies();
  clear_padding(task, false);
  ItemList items(task);
  // The same in all lanes, and so the compiler knows: wgmma must not stand where a warp could diverge.
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  if (role == 0) {
    ptx::give_registers<40>();
    if (threadIdx.x < 32) {
      CopyState state;
      for (int round = 0, i; (i = turn(round)) < items.size(); ++round) {
        copy_item<D>(p, items[i], q_at, k_at, v_at, barriers, state);
      }
    }
  } else {
    ptx::take_registers<232>();
    AttendState state;
    for (int round = 0, i; (i = turn(round)) < items.size(); ++round) {
      attend_item<T, D>(p, items[i], role - 1, q_at, k_at, v_at, staging, barriers, state);
    }
  }
#else
  __trap();  // compiled for another architecture, where hopper_attention is refused
#endif
}

template <class T, int D>
void launch_as(unsigned grid, const PrefillParams& p, Stream& stream) {
  launch<attention_prefill_kernel<T, D>>({.grid = grid, .block = kThreads, .shared = Shared<D>::kBytes}, p, stream);
}

template <class T>
void launch_for(unsigned grid, const PrefillParams& p, Stream& stream) {
  (p.task.head_dim == 64 ? launch_as<T, 64> : launch_as<T, 128>)(grid, p, stream);
}

}  // namespace

bool prefill_takes(const LaunchArgs& args) {
  const auto& op = std::get<Attention>(*args.op);
  const DType type = args.batch->kv[op.layer].dtype;
  return (op.head_dim == 64 || op.head_dim == 128) && args.in[0].dtype == type && args.out[0].dtype == type;
}

void launch_prefill(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Attention>(*args.op);
  const BatchView& batch = *args.batch;
  const KvView& kv = batch.kv[op.layer];
  const int box = kv.block_size < 64 ? kv.block_size : 64;
  const PrefillParams p{.q = query_map(args.in[0], op.heads, op.head_dim),
                        .k = kv_map(kv, op.kv_heads, op.head_dim, false, box),
                        .v = kv_map(kv, op.kv_heads, op.head_dim, true, box),
                        .task = attention_task(args),
                        .box_slots = box};
  const int64_t items = (static_cast<int64_t>(batch.tokens) / kTokens + batch.seqs) * op.heads;
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(items, cuda_stream(stream).device().multiprocessors));
  (kv.dtype == DType::bf16 ? launch_for<__nv_bfloat16> : launch_for<__half>)(grid, p, stream);
}

}  // namespace pinion::cuda
