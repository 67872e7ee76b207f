// Grouped linears, the parts that serve any shape: slots are put in the order of their experts, and cut into tiles of
// one expert; then a product without tensor cores for any float types, which reads a tile's expert and no other.
#include <algorithm>

#include "backend/cuda/kernels/moe.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kOrderWarps = 8;

struct OrderParams {
  const int32_t* ids = nullptr;
  ExpertOrder order;
  int32_t slots = 0, experts = 0, first_expert = 0, tile_slots = 0;

  // The experts here, and after them one bin for all others.
  __device__ int32_t bin(int32_t slot) const {
    const int32_t e = ids[slot] - first_expert;
    return e >= 0 && e < experts ? e : experts;
  }
};

// A warp per expert walks all slots: a few of 4 bytes each, and no order among threads to take care of.
__global__ void __launch_bounds__(kOrderWarps * 32) count_slots_kernel(const __grid_constant__ OrderParams p) {
  const int32_t bin = blockIdx.x * kOrderWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (bin > p.experts) return;
  int32_t count = 0;
#pragma unroll 4
  for (int32_t i = lane; i < p.slots; i += 32) count += p.bin(i) == bin;
  count = __reduce_add_sync(0xffffffffu, count);
  if (lane == 0) p.order.counts[bin] = count;
}

__global__ void __launch_bounds__(kOrderWarps * 32) order_slots_kernel(const __grid_constant__ OrderParams p) {
  const int32_t bin = blockIdx.x * kOrderWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (bin > p.experts) return;
  int32_t first = 0, first_tile = 0;
  for (int32_t b = lane; b < bin; b += 32) {
    const int32_t n = p.order.counts[b];
    first += n, first_tile += (n + p.tile_slots - 1) / p.tile_slots;
  }
  first = __reduce_add_sync(0xffffffffu, first), first_tile = __reduce_add_sync(0xffffffffu, first_tile);
  const int32_t count = p.order.counts[bin], tiles = (count + p.tile_slots - 1) / p.tile_slots;
  for (int32_t i = lane; i < tiles; i += 32) {
    const int32_t from = first + i * p.tile_slots;
    p.order.tiles[first_tile + i] = {bin < p.experts ? bin : -1, from, min(from + p.tile_slots, first + count)};
  }
  if (bin == p.experts && lane == 0) *p.order.tile_count = first_tile + tiles;
  for (int32_t i = 0, at = first; i < p.slots && at < first + count; i += 32) {
    const bool mine = i + lane < p.slots && p.bin(i + lane) == bin;
    const unsigned mask = __ballot_sync(0xffffffffu, mine);
    if (mine) p.order.slots[at + __popc(mask & ((1u << lane) - 1))] = i + lane;
    at += __popc(mask);
  }
}

size_t lines(size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

int64_t most_tiles(int64_t slots, int64_t experts, int tile_slots) {
  return slots / tile_slots + std::min(slots, experts + 1);
}

constexpr int kTile = 32, kK = 32;           // rows and slots of a block; k of a step
constexpr int kThreads = kTile * kTile / 4;  // each two rows x two slots: 16 x 16 threads

struct PlainParams {
  ConstValues weight, x;
  ExpertOutput output;
  ExpertOrder order;
  int32_t in = 0, top_k = 1;
  bool per_slot = false;
};

__global__ void __launch_bounds__(kThreads) expert_linear_plain_kernel(const __grid_constant__ PlainParams p) {
  __shared__ float w[kK][kTile + 2], x[kK][kTile + 2];  // the pad keeps pairs aligned and columns in different banks
  __shared__ int32_t slots[kTile];
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (blockIdx.y >= *p.order.tile_count) return;
  const ExpertTile tile = p.order.tiles[blockIdx.y];
  const int first_row = blockIdx.x * kTile, row = threadIdx.x % 16 * 2, column = threadIdx.x / 16 * 2;
  if (threadIdx.x < kTile) {
    const int i = tile.first + static_cast<int>(threadIdx.x);
    slots[threadIdx.x] = i < tile.last ? p.order.slots[i] : -1;
  }
  __syncthreads();
  if (tile.expert < 0) {  // another rank's: zeros, kTile columns of the outputs a block (twice what a gate leaves)
    const int width = p.output.slot_width();
    for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
      const int slot = slots[i / kTile], at = first_row + i % kTile;
      if (slot >= 0 && at < width) store(p.output.y, int64_t{slot} * width + at, 0.0f);
    }
    return;
  }
  float sum[2][2] = {};
  for (int k0 = 0; k0 < p.in; k0 += kK) {
    for (int i = threadIdx.x; i < kTile * kK; i += kThreads) {
      const int r = i / kK, k = k0 + i % kK, slot = slots[r];
      const int64_t w_row = int64_t{tile.expert} * p.output.out + first_row + r;
      w[i % kK][r] = k < p.in && first_row + r < p.output.out ? load(p.weight, w_row * p.in + k) : 0;
      x[i % kK][r] = k < p.in && slot >= 0 ? load(p.x, int64_t{p.per_slot ? slot : slot / p.top_k} * p.in + k) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kK; ++k) {
      const float2 a = *reinterpret_cast<const float2*>(&w[k][row]),
                   b = *reinterpret_cast<const float2*>(&x[k][column]);
      sum[0][0] += a.x * b.x, sum[0][1] += a.y * b.x, sum[1][0] += a.x * b.y, sum[1][1] += a.y * b.y;
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int slot = slots[column + i];
    if (slot >= 0) store_expert_rows<2>(p.output, slot, tile.expert, first_row + row, sum[i]);
  }
}

}  // namespace

size_t expert_order_bytes(int64_t slots, int64_t experts, int tile_slots) {
  return lines((experts + 2) * sizeof(int32_t)) + lines(slots * sizeof(int32_t)) +
         lines(most_tiles(slots, experts, tile_slots) * sizeof(ExpertTile));
}

ExpertOrder order_experts(const ExpertLinearProblem& p, int tile_slots, std::span<std::byte> workspace,
                          Stream& stream) {
  check(workspace.size() >= expert_order_bytes(p.slots, p.experts, tile_slots),
        "a grouped linear's workspace is small");
  std::byte* at = workspace.data();
  ExpertOrder order{.counts = reinterpret_cast<int32_t*>(at),
                    .slots = reinterpret_cast<int32_t*>(at + lines((p.experts + 2) * sizeof(int32_t)))};
  order.tile_count = order.counts + p.experts + 1;
  order.tiles =
      reinterpret_cast<ExpertTile*>(reinterpret_cast<std::byte*>(order.slots) + lines(p.slots * sizeof(int32_t)));
  order.most_tiles = static_cast<int32_t>(most_tiles(p.slots, p.experts, tile_slots));
  const OrderParams params{.ids = p.ids,
                           .order = order,
                           .slots = p.slots,
                           .experts = p.experts,
                           .first_expert = p.first_expert,
                           .tile_slots = tile_slots};
  const LaunchShape shape{.grid = blocks_for(p.experts + 1, kOrderWarps), .block = kOrderWarps * 32};
  launch<count_slots_kernel>(shape, params, stream);
  launch<order_slots_kernel>(shape, params, stream);
  return order;
}

size_t expert_linear_plain_workspace(int64_t slots, int64_t experts) {
  return expert_order_bytes(slots, experts, kTile);
}

void expert_linear_plain(const ExpertLinearProblem& p, std::span<std::byte> workspace, Stream& stream) {
  if (p.slots == 0) return;
  const ExpertOrder order = order_experts(p, kTile, workspace, stream);
  launch<expert_linear_plain_kernel>(
      {.grid = dim3(blocks_for(p.output.out, kTile), order.most_tiles), .block = kThreads},
      PlainParams{.weight = {p.weight, p.type},
                  .x = {p.x, p.x_type},
                  .output = p.output,
                  .order = order,
                  .in = p.in,
                  .top_k = p.top_k,
                  .per_slot = p.per_slot},
      stream);
}

}  // namespace pinion::cuda
