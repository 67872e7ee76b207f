// Grouped linear for a few tokens: the memory bus is the floor, and what is read is the weights of the experts that the
// slots name, each once for every eight slots. A block first lists those experts and their slots; then groups of its
// warps walk tiles of 16 rows of one expert. The warps of a group split K, each with a ring of asynchronous copies that
// runs on across tiles. (Bulk copies of a row's 256 bytes were measured slower here: their rate an SM is the limit.)
//
// As in linear_stream.cu, lane (g, t) reads the 16 bytes at k = 32 i + 8 t of rows g and g + 8, and of slot g, and
// calls them the fragments of two mma.sync steps. x comes from global memory, a unit ahead.
#include <algorithm>

#include "backend/cuda/kernels/moe.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/copy_async.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mma_sync.h"

namespace pinion::cuda {
namespace {

constexpr int kTileRows = 16, kTileSlots = 8, kMaxWarps = 16;
constexpr int kMaxSlots = 256, kMaxTokens = 16;
constexpr int kSumPitch = 20;  // floats from one slot's 16 sums to the next: writes and reads meet no bank twice
constexpr int kSums = kTileSlots * kSumPitch;
// A warp takes more of K than sixteen of them need to cover it: several tiles are then under way in a block.
constexpr int kWarpUnits = 4;
constexpr int kStages = 3;  // of a warp's ring
constexpr int kUnitK = 128, kSteps = kUnitK / 32, kUnitPitch = kUnitK * 2, kUnitBytes = 16 * kUnitPitch + 128;

struct StreamParams {
  const void* weight = nullptr;
  const void* x = nullptr;
  const int32_t* ids = nullptr;
  ExpertOutput output;
  int32_t in = 0, slots = 0, top_k = 1, experts = 1, first_expert = 0;
  bool per_slot = false;
  int32_t tiles = 0;                   // of 16 rows, of an expert
  int32_t group_warps = 1, units = 1;  // warps that split K, and what each of them takes of it
};

// A unit is 16 rows x 128 k, even rows one after another, odd rows after them and half a bank line aside.
__device__ inline int unit_row(int row) {
  return (row >> 1) * kUnitPitch + (row & 1) * (8 * kUnitPitch + 64);
}
__device__ inline void group_sync(int group, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(threads) : "memory");
}

// The slots by expert, at most kTileSlots of one expert an entry.
struct Entry {
  int16_t first, count;
  int32_t expert;
};
struct Lists {
  int32_t ids[kMaxSlots];
  int16_t order[kMaxSlots];
  Entry entries[kMaxSlots];
  int32_t entry_count, mine;
};

// Every block makes the same lists: a rank sort, a thread per slot.
__device__ inline void make_lists(const StreamParams& p, Lists& lists) {
  for (int i = threadIdx.x; i < p.slots; i += blockDim.x) {
    const int32_t e = p.ids[i] - p.first_expert;
    lists.ids[i] = e >= 0 && e < p.experts ? e : INT32_MAX;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.slots; i += blockDim.x) {
    const int32_t e = lists.ids[i];
    int rank = 0;
#pragma unroll 8
    for (int j = 0; j < p.slots; ++j) rank += lists.ids[j] < e || (lists.ids[j] == e && j < i);
    lists.order[rank] = static_cast<int16_t>(i);
  }
  __syncthreads();
  if (threadIdx.x < 32) {  // entries begin where an expert does, and every kTileSlots of its slots
    int entries = 0, mine = 0, start = 0;
    for (int i0 = 0; i0 < p.slots; i0 += 32) {
      const int i = i0 + static_cast<int>(threadIdx.x);
      const int32_t e = i < p.slots ? lists.ids[lists.order[i]] : INT32_MAX;
      const int32_t before = i > 0 && i < p.slots ? lists.ids[lists.order[i - 1]] : -1;
      const unsigned starts = __ballot_sync(0xffffffffu, i < p.slots && e != before);
      const unsigned low = starts & (0xffffffffu >> (31 - threadIdx.x));
      const int own = low != 0 ? i0 + 31 - __clz(low) : start;  // where this slot's expert starts
      const bool begins = e != INT32_MAX && (i - own) % kTileSlots == 0;
      const unsigned begin_mask = __ballot_sync(0xffffffffu, begins);
      if (begins) {
        const int at = entries + __popc(begin_mask & ((1u << threadIdx.x) - 1));
        lists.entries[at] = {static_cast<int16_t>(i), 0, e};
      }
      entries += __popc(begin_mask);
      mine += __popc(__ballot_sync(0xffffffffu, e != INT32_MAX));
      start = __shfl_sync(0xffffffffu, own, 31);
    }
    __syncwarp();
    for (int n = threadIdx.x; n < entries; n += 32) {
      const int next = n + 1 < entries ? lists.entries[n + 1].first : mine;
      lists.entries[n].count = static_cast<int16_t>(next - lists.entries[n].first);
    }
    if (threadIdx.x == 0) lists.entry_count = entries, lists.mine = mine;
  }
  __syncthreads();
}

// An item is a tile of an entry. A worker's items lie `workers` apart.
struct Item {
  int32_t entry, tile;
  __device__ void advance(int workers, int tiles) {
    tile += workers;
    while (tile >= tiles) tile -= tiles, ++entry;
  }
};

// T: __nv_bfloat16 or __half.
template <class T>
__global__ void __launch_bounds__(kMaxWarps * 32, 1)
    expert_linear_stream_kernel(const __grid_constant__ StreamParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Lists lists;
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int groups = warps / p.group_warps, group = warp / p.group_warps, part = warp % p.group_warps;
  const int worker = group * gridDim.x + blockIdx.x, workers = gridDim.x * groups;  // neighbours on other SMs
  uint8_t* ring = shared + warp * kStages * kUnitBytes;
  float* sums = reinterpret_cast<float*>(shared + warps * kStages * kUnitBytes);  // [2][warps][kTileSlots][kSumPitch]
  const uint32_t ring_at = ptx::shared_address(ring);
  ptx::launch_dependents();
  ptx::wait_dependencies();
  make_lists(p, lists);

  for (int i = lists.mine + static_cast<int>(blockIdx.x); i < p.slots; i += gridDim.x) {  // another rank's: zeros
    const int64_t slot = lists.order[i], width = p.output.slot_width();
    for (int64_t at = threadIdx.x; at < width; at += blockDim.x) store(p.output.y, slot * width + at, 0.0f);
  }
  const int items = lists.entry_count * p.tiles, k_first = part * p.units * kUnitK;
  const int units = min(max((p.in - k_first + kUnitK - 1) / kUnitK, 0), p.units);  // of this warp, of every item
  const int steps = units * ((items - worker + workers - 1) / workers);

  Item next{};  // of the copy that is asked for next
  next.advance(worker, p.tiles);
  Item item = next, ahead = next;
  int next_unit = 0, ahead_unit = 0;
  int asked = 0;              // units
  const auto request = [&] {  // always closes a group of copies, so that one is there to wait for
    if (asked < steps) {
      const int k = k_first + next_unit * kUnitK + lane % 16 * 8, first = next.tile * kTileRows + lane / 16;
      const T* from = static_cast<const T*>(p.weight) +
                      static_cast<int64_t>(lists.entries[next.entry].expert) * p.output.out * p.in + k;
      const uint32_t to = ring_at + asked % kStages * kUnitBytes + lane % 16 * 16;
#pragma unroll
      for (int i = 0; i < kTileRows; i += 2) {
        const int row = min(first + i, p.output.out - 1);
        ptx::copy_async_16(to + unit_row(i + lane / 16), from + static_cast<int64_t>(row) * p.in, k < p.in ? 16 : 0);
      }
      if (++next_unit == units) next_unit = 0, next.advance(workers, p.tiles);
    }
    ++asked;
    ptx::copy_async_commit();
  };
  for (int i = 0; i + 1 < kStages; ++i) request();

  // x of one unit, for lane (g, t): slot g of the entry.
  const auto load_x = [&](uint4(&x)[kSteps]) {
    const Entry entry = lists.entries[ahead.entry];
    const int slot = g < entry.count ? lists.order[entry.first + g] : -1, k = k_first + ahead_unit * kUnitK;
    const T* from = static_cast<const T*>(p.x) + int64_t{p.per_slot ? max(slot, 0) : max(slot, 0) / p.top_k} * p.in;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      x[i] =
          slot >= 0 && k + 32 * i + 8 * t < p.in ? *reinterpret_cast<const uint4*>(from + k + 32 * i + 8 * t) : uint4{};
    }
    if (++ahead_unit == units) ahead_unit = 0, ahead.advance(workers, p.tiles);
  };
  uint4 x_next[kSteps] = {};
  if (steps > 0) load_x(x_next);

  int step = 0, slot_of_sums = 0;
  for (int i_item = worker; i_item < items; i_item += workers, item.advance(workers, p.tiles)) {
    float c[4] = {};
    for (int q = 0; q < units; ++q, ++step) {
      uint4 x[kSteps];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) x[i] = x_next[i];
      if (step + 1 < steps) load_x(x_next);
      ptx::copy_async_wait<kStages - 2>();
      __syncwarp();  // all lanes' copies of this unit have arrived, and the unit before it has been read
      request();
      const uint8_t* w = ring + step % kStages * kUnitBytes + unit_row(g) + 16 * t;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint4 lo = *reinterpret_cast<const uint4*>(w + 64 * i);
        const uint4 hi = *reinterpret_cast<const uint4*>(w + 4 * kUnitPitch + 64 * i);  // row g + 8
        ptx::mma_m16n8k16<T>(c, {lo.x, hi.x, lo.y, hi.y}, x[i].x, x[i].y);
        ptx::mma_m16n8k16<T>(c, {lo.z, hi.z, lo.w, hi.w}, x[i].z, x[i].w);
      }
    }
    float* to = sums + (slot_of_sums * warps + warp) * kSums + 2 * t * kSumPitch + g;
    to[0] = c[0], to[kSumPitch] = c[1], to[8] = c[2], to[kSumPitch + 8] = c[3];
    group_sync(group, p.group_warps * 32);  // one an item is enough: the slot is written again only after the next one
    const Entry entry = lists.entries[item.entry];
    for (int i = part * 32 + lane; i < 8 * entry.count; i += p.group_warps * 32) {
      const float* from = sums + (slot_of_sums * warps + group * p.group_warps) * kSums + i / 8 * kSumPitch + i % 8 * 2;
      float v[2] = {};
      for (int w = 0; w < p.group_warps; ++w) {  // always in this order
        const float2 s = *reinterpret_cast<const float2*>(from + w * kSums);
        v[0] += s.x, v[1] += s.y;
      }
      const int row = item.tile * kTileRows + i % 8 * 2;
      if (row < p.output.out) {
        store_expert_rows<2>(p.output, lists.order[entry.first + i / 8], entry.expert, row, v);
      }
    }
    slot_of_sums ^= 1;
  }
}

template <class T>
void launch_stream(const ExpertLinearProblem& p, Stream& stream) {
  StreamParams params{.weight = p.weight,
                      .x = p.x,
                      .ids = p.ids,
                      .output = p.output,
                      .in = p.in,
                      .slots = p.slots,
                      .top_k = p.top_k,
                      .experts = p.experts,
                      .first_expert = p.first_expert,
                      .per_slot = p.per_slot};
  params.tiles = (p.output.out + kTileRows - 1) / kTileRows;
  const int units = (p.in + kUnitK - 1) / kUnitK;
  params.units = std::min(units, kWarpUnits * ((units + kMaxWarps - 1) / kMaxWarps));
  params.group_warps = (units + params.units - 1) / params.units;
  const int warps = std::min(kMaxWarps / params.group_warps, 8) * params.group_warps;
  launch<expert_linear_stream_kernel<T>>({.grid = static_cast<unsigned>(cuda_stream(stream).device().multiprocessors),
                                          .block = static_cast<unsigned>(warps * 32),
                                          .shared = warps * (kStages * kUnitBytes + 2 * kSums * sizeof(float))},
                                         params, stream);
}

}  // namespace

void expert_linear_stream(const ExpertLinearProblem& p, Stream& stream) {
  if (p.slots == 0) return;
  if (p.type == DType::bf16) return launch_stream<__nv_bfloat16>(p, stream);
  launch_stream<__half>(p, stream);
}

std::string expert_linear_stream_why_not(DType type, int64_t tokens, const MoeLinear& op) {
  if (type != DType::bf16 && type != DType::f16) return "multiplies bf16 or f16";
  if (tokens > kMaxTokens || tokens * op.top_k > kMaxSlots) {
    return "takes at most " + std::to_string(kMaxTokens) + " tokens and " + std::to_string(kMaxSlots) + " slots";
  }
  if (op.in % 8 != 0) return "needs `in` to be a multiple of 8";
  return {};
}

}  // namespace pinion::cuda
