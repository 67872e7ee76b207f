// Paged attention of sequences with few query rows, bound by reading the cache: the heads of a group and the step's
// tokens of a sequence share a tile of 8 or 16 rows, so that K and V are read once. The step's work, a list of units of
// 16 keys ordered by sequence and KV head, is divided evenly among the thread blocks of a fixed grid; every block finds
// its part from the lengths in device memory, so that a recorded launch serves any lengths. Within a block each warp
// takes every eighth unit and keeps a ring of tensor copies in flight without waiting for the others. A block whose
// part ends within a head leaves a partial result; the last one to finish merges them in order.
//
// With few sequences nothing but latency counts: a cluster of blocks then takes a head, its warps a unit or two each,
// and the blocks' parts become one in shared memory, without a way through L2 and back.
#include <algorithm>
#include <bit>

#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/attention.h"
#include "backend/cuda/kernels/attention_decode_merge.h"
#include "backend/cuda/kernels/attention_decode_walk.h"
#include "backend/cuda/kernels/attention_decode_warp.h"
#include "backend/cuda/kernels/kv_write.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/bulk_copy.h"
#include "backend/cuda/ptx/cluster.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mbarrier.h"
#include "backend/cuda/ptx/mma_sync.h"
#include "backend/cuda/tile/kv_map.h"

namespace pinion::cuda {
namespace {

struct DecodeParams {
  CUtensorMap pages;
  AttentionTask task;
  int32_t block_shift = 6;      // block_size = 1 << block_shift
  float* partials = nullptr;    // two per block: of the head it continues, of the head it leaves unfinished
  unsigned* tickets = nullptr;  // per block, zero between launches
};

// Rows: of a tile, 8 or 16. kCluster: blocks that share a head, 1 for the division of the work among all blocks.
template <int D, int Rows, int kCluster>
struct Ring {
  static constexpr int kWarps = D > 128 ? 4 : 8, kThreads = 32 * kWarps;
  static constexpr int kSlabs = (D + 63) / 64, kBytes = 2 * kSlabs * kSlabBytes;  // of a unit: slabs of K and V in turn
  // As many bytes as can be in flight; with few sequences of small heads no more than leaves room for a block of the
  // linear behind, whose weights then arrive meanwhile.
  static constexpr bool kShares = kCluster > 1 && D <= 64;
  static constexpr int kStages = kShares ? 2 : 192 * 1024 / (kWarps * kBytes);
  static constexpr int kExchange = kWarps * (4 * D + 64);        // floats: four rows of every warp's sums
  static constexpr int kPart = kCluster > 1 ? Rows*(D + 4) : 0;  // floats: the block's part of a head
  static constexpr size_t kShared = 1024 + static_cast<size_t>(kWarps) * kStages * kBytes + kExchange * 4 + kPart * 4 +
                                    kWarps * Rows * 8 + kWarps * kStages * 8;
};

// Units of a head that one cluster takes before others help: two a warp.
template <int D, int Rows, int kCluster>
constexpr int kEnough = 2 * kCluster* Ring<D, Rows, kCluster>::kWarps;

template <class T, int D, int Rows, int kCluster>
__global__ void __launch_bounds__(Ring<D, Rows, kCluster>::kThreads, Ring<D, Rows, kCluster>::kShares ? 2 : 1)
    attention_decode_kernel(const __grid_constant__ DecodeParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using R = Ring<D, Rows, kCluster>;
  extern __shared__ unsigned char raw[];
  __shared__ bool last_block;
  const AttentionTask& task = p.task;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  const uint32_t rings = (ptx::shared_address(raw) + 1023) / 1024 * 1024;  // swizzled copies want this alignment
  unsigned char* base = raw + (rings - ptx::shared_address(raw));
  const uint32_t ring = rings + warp * R::kStages * R::kBytes;
  float* exchange = reinterpret_cast<float*>(base + R::kWarps * R::kStages * R::kBytes);
  float* part = exchange + R::kExchange;
  float2* stats = reinterpret_cast<float2*>(part + R::kPart);  // [warps][Rows]: largest score, sum of weights
  const uint32_t full = ptx::shared_address(stats + R::kWarps * Rows) + warp * R::kStages * 8;

  if (lane == 0) {
    for (int i = 0; i < R::kStages; ++i) ptx::barrier_init(full + 8 * i, 1);
    ptx::barrier_init_fence();
  }
  __syncwarp();
  ptx::launch_dependents();

  // Lengths and block tables went up before the step's first kernel, and keys of earlier steps are older still: neither
  // waits for the kernel before this one.
  int64_t total = 0, blocks = 0;
  Walk<Rows> work;
  int team = warp, warps = R::kWarps;  // this warp among those that share the work's units
  int shared_by = 1, number = 0;       // clusters of the head, and which of them this is
  if constexpr (kCluster > 1) {
    team += static_cast<int>(ptx::cluster_rank()) * R::kWarps, warps *= kCluster;
    const int clusters = static_cast<int>(gridDim.x) / kCluster, cluster = static_cast<int>(blockIdx.x) / kCluster;
    const int each = clusters / (task.seqs * task.kv_heads), index = cluster / each;
    number = cluster % each;
    if (index < task.seqs * task.kv_heads) {
      work.s = index / task.kv_heads, work.head = index % task.kv_heads;
      work.seq = sequence<Rows>(task, work.s);
      shared_by = min(each, max(1, work.seq.units / kEnough<D, Rows, kCluster>));
      if (number < shared_by) {
        work.first = work.seq.units * number / shared_by, work.until = work.seq.units * (number + 1) / shared_by;
      }
    }
  } else {
    const Work all = all_work<Rows>(task);
    total = all.total;
    if (divides_into_heads(all, static_cast<int>(gridDim.x))) {
      const int from = static_cast<int>(int64_t{blockIdx.x} * all.heads / gridDim.x);
      const int to = static_cast<int>(int64_t{blockIdx.x + 1} * all.heads / gridDim.x);
      if (from < to) work.take_heads(task, all.heads_each, from, to - from);
    } else {
      blocks = min(static_cast<int64_t>(gridDim.x), (total + R::kWarps - 1) / R::kWarps);
      if (blocks > 0) {
        work.begin = static_cast<int>(min(blockIdx.x * total / blocks, total));
        work.end = static_cast<int>(min((blockIdx.x + 1) * total / blocks, total));
      }
      if (work.begin < work.end) work.seek(task);
    }
  }
  if (kCluster > 1 ? work.first >= work.until : work.begin >= work.end) {
    ptx::wait_dependencies();
    clear_padding(task, true);
    return;
  }

  Walk<Rows> request = work;
  int unit = request.first + team;  // of request's head: requested next
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
      unit = request.first + team;
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
        ptx::tensor_copy_4d(to + slab * 2 * kSlabBytes, &p.pages, 64 * slab, row + slot, 0, max(page, 0), barrier,
                            ptx::CacheHint::evict_first);
      }
    }
    __syncwarp();
    unit += warps;
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
  clear_padding(task, true);

  WarpState<T, D, Rows> state;
  int stage = 0;
  uint32_t parity = 0;
  do {  // one head after another
    if (work.first >= work.until) continue;
    const bool starts = work.first == 0, ends = work.until == work.seq.units;
    state.clear();
    if (work.first + team < work.until) state.load_q(task, work.seq, work.head);
    for (int next = work.first + team; next < work.until; next += warps) {
      ptx::barrier_wait(full + 8 * stage, parity);
      state.attend(task, work.seq, ring + stage * R::kBytes, (work.seq.first_unit + next) * kUnitKeys);
      __syncwarp();
      if (more) request_unit(stage);
      if (++stage == R::kStages) stage = 0, parity ^= 1;
    }

    // The warps' parts become one, in the order of warps.
    constexpr int kTiles = Rows / 8;
    float weight[kTiles][2];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int d = 4; d < 32; d *= 2) state.sum[n][i] += __shfl_xor_sync(~0u, state.sum[n][i], d);
        if (g == 0) stats[warp * Rows + 8 * n + 2 * t + i] = {state.largest(n, i), state.sum[n][i]};
      }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float largest = -INFINITY;
#pragma unroll
        for (int w = 0; w < R::kWarps; ++w) largest = fmaxf(largest, stats[w * Rows + 8 * n + 2 * t + i].x);
        weight[n][i] = exp2_fast(state.largest(n, i) - (largest == -INFINITY ? 0.0f : largest));
      }
    }
    const int rows = rows_in<Rows>(task, work.seq, work.head);
    const int room = rows <= 4 ? 4 : rows <= 8 ? 8 : 16, columns = max(1, D / 8 * 4 / room) * 8;  // of a pass
    const int pitch = columns + 4;  // floats: queries 2t of a warp then lie in banks of their own
    float* partial = p.partials + (2 * blockIdx.x + (starts ? 1 : 0)) * kPartial<D>;
    const bool whole = kCluster == 1 && starts && ends;
    for (int first = 0; first < D; first += columns) {
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {  // eight columns
        if (8 * j < first || 8 * j >= first + columns) continue;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int to = 8 * n + 2 * t + i;
            if (to < rows) {
              exchange[(warp * room + to) * pitch + 8 * j - first + g] =
                  state.out[n][j / 2][j % 2 * 2 + i] * weight[n][i];
            }
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
          const float2 v = *reinterpret_cast<const float2*>(exchange + (w * room + row) * pitch + column);
          pair[0] += v.x, pair[1] += v.y;
        }
        if (kCluster > 1) {
          *reinterpret_cast<float2*>(part + row * D + first + column) = {pair[0], pair[1]};
        } else if (!whole) {
          *reinterpret_cast<float2*>(partial + row * D + first + column) = {pair[0], pair[1]};
        }
        if (whole || (first == 0 && column == 0)) {
          float largest = -INFINITY, sum = 0;
#pragma unroll
          for (int w = 0; w < R::kWarps; ++w) largest = fmaxf(largest, stats[w * Rows + row].x);
#pragma unroll
          for (int w = 0; w < R::kWarps; ++w) {
            const float2 s = stats[w * Rows + row];
            sum = __fmaf_rn(s.y, exp2_fast(s.x - (largest == -INFINITY ? 0.0f : largest)), sum);
          }
          if (whole) {
            const RowPlace to = place<Rows>(task, work.seq, work.head, row);
            const float factor = normalizer(task, to.head, largest, sum);
            pair[0] *= factor, pair[1] *= factor;
            if (first + column < task.head_dim) store<2>(task.out, to.element(task, work.seq) + first + column, pair);
          } else if (kCluster > 1) {
            *reinterpret_cast<float4*>(part + Rows * D + row * 4) = {largest, sum, 0, 0};
          } else {
            reinterpret_cast<float2*>(partial + kMostRows * D)[row] = {largest, sum};
          }
        }
      }
      __syncthreads();
    }
    // The last of `others` + 1 blocks to leave its part of the head merges all of them.
    const auto merge = [&](unsigned* ticket, int others, int parts, auto&& partial_of) {
      if (threadIdx.x == 0) {
        last_block = take_ticket(ticket) == static_cast<unsigned>(others);
        if (last_block) *ticket = 0;
      }
      __syncthreads();
      if (last_block) merge_partials<D, Rows>(task, work.seq, work.head, parts, partial_of);
    };
    if constexpr (kCluster > 1) {
      const int first = static_cast<int>(blockIdx.x) / kCluster - number;  // of the head's clusters
      const auto partial_of = [&](int n) { return p.partials + (first + n) * kPartial<D>; };
      ptx::cluster_sync();
      merge_cluster<D, Rows, kCluster>(task, work.seq, work.head, ptx::shared_address(part),
                                       shared_by > 1 ? partial_of(number) : nullptr);
      ptx::cluster_arrive_relaxed();
      if (shared_by > 1) {
        __syncthreads();
        merge(p.tickets + first, shared_by * kCluster - 1, shared_by, partial_of);
      }
      ptx::cluster_wait();  // until no block reads this one's shared memory
    } else if (!whole) {    // blocks [from, to] share this head
      const int64_t units_at = work.head_at + kHeadCost, units_end = units_at + work.seq.units;
      const int from = static_cast<int>(((units_at + 1) * blocks - 1) / total);
      const int to = static_cast<int>((units_end * blocks - 1) / total);
      merge(p.tickets + from, to - from, to - from + 1,
            [&](int n) { return p.partials + (2 * (from + n) + (n == 0 ? 1 : 0)) * kPartial<D>; });
    }
  } while (work.next(task));
#else
  __trap();  // compiled for another architecture, where hopper_attention is refused
#endif
}

using DecodeLaunch = void (*)(unsigned, const DecodeParams&, Stream&);

template <class T, int D, int Rows, int kCluster>
void launch_as(unsigned grid, const DecodeParams& p, Stream& stream) {
  using R = Ring<D, Rows, kCluster>;
  launch<attention_decode_kernel<T, D, Rows, kCluster>>(
      {.grid = grid, .block = R::kThreads, .shared = R::kShared, .cluster = kCluster}, p, stream);
}

// Blocks of a cluster for heads up to 64, and for larger ones: a small head's blocks share their SMs with the linear
// behind, whose weights then arrive in any case; a large head's take an SM each, and more of them end sooner. With long
// contexts reading takes the time, for which every SM is wanted: clusters of large heads serve short ones alone.
constexpr int kSmallCluster = 4, kLargeCluster = 8;
constexpr int32_t kShortContext = 2048;

template <class T, int Rows, int kSmall, int kLarge>
DecodeLaunch launch_for(int64_t head_dim) {
  if (head_dim <= 64) return launch_as<T, 64, Rows, kSmall>;
  if (head_dim <= 96) return launch_as<T, 96, Rows, kLarge>;
  if (head_dim <= 128) return launch_as<T, 128, Rows, kLarge>;
  return launch_as<T, 256, Rows, kLarge>;
}

template <class T>
DecodeLaunch launch_for(int64_t head_dim, bool clusters, bool eight) {
  if (clusters) return launch_for<T, 8, kSmallCluster, kLargeCluster>(head_dim);
  return eight ? launch_for<T, 8, 1, 1>(head_dim) : launch_for<T, 16, 1, 1>(head_dim);
}

int64_t padded(int64_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : head_dim <= 128 ? 128 : 256;
}

}  // namespace

size_t decode_workspace(const Call& call, const DeviceInfo& info) {
  const auto& op = std::get<Attention>(*call.op);
  return sizeof(float) * 2 * info.threads * kMostRows * (padded(op.head_dim) + 2);
}

void launch_decode(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Attention>(*args.op);
  const KvView& kv = args.batch->kv[op.layer];
  const CudaStream& cuda = cuda_stream(stream);
  const unsigned grid = static_cast<unsigned>(cuda.device().multiprocessors);
  check(args.workspace.size() >= sizeof(float) * 2 * grid * kMostRows * (padded(op.head_dim) + 2),
        "the attention kernel's workspace is too small");
  check(grid <= CudaStream::kTickets, "a GPU has more multiprocessors than a stream has tickets");
  const DecodeParams p{.pages = kv_pair_map(kv, op.kv_heads, op.head_dim, kUnitKeys),
                       .task = attention_task(args),
                       .block_shift = std::countr_zero(static_cast<uint32_t>(kv.block_size)),
                       .partials = reinterpret_cast<float*>(args.workspace.data()),
                       .tickets = cuda.tickets()};
  // One tile of 8 rows serves a decode step of all but wide groups; 16 rows read the cache once for up to two.
  const bool eight = args.batch->max_seq_tokens * (op.heads / op.kv_heads) <= 8;
  const unsigned cluster = op.head_dim <= 64 ? kSmallCluster : kLargeCluster, clusters = grid / cluster;
  const bool few = eight && 2 * args.batch->seqs * op.kv_heads <= clusters &&
                   (op.head_dim <= 64 || args.batch->max_context <= kShortContext);
  const DecodeLaunch start = kv.dtype == DType::bf16 ? launch_for<__nv_bfloat16>(op.head_dim, few, eight)
                                                     : launch_for<__half>(op.head_dim, few, eight);
  start(few ? clusters * cluster : grid, p, stream);
}

}  // namespace pinion::cuda
