// Grouped linear for many slots with the instructions that every GPU since sm_80 has: mma.sync and cp.async. A block
// computes 128 weight rows of one expert for a tile of slots, whose rows of x it gathers. K is never cut between warps:
// a slot's sums are the same whatever the tile and whoever shares it.
//
// A product over k does not care about the order of k: lane (g, t) reads the 16 bytes at k = 32 i + 8 t of its rows and
// calls them the fragments of two mma.sync steps, so that nothing is packed and no ldmatrix is needed.
#include "backend/cuda/kernels/moe.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/copy_async.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mma_sync.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kRows = 128, kWarps = 4, kThreads = kWarps * 32;
constexpr int kStageK = 64, kVectors = kStageK / 8;  // k of a stage, and its 16-byte vectors
constexpr int kStages = 3, kSumPitch = kRows + 4;

struct GroupedParams {
  const void* weight = nullptr;
  const void* x = nullptr;
  ExpertOutput output;
  ExpertOrder order;
  int32_t in = 0, top_k = 1;
  bool per_slot = false;
};

template <int kSlots>
constexpr size_t kStageBytes = static_cast<size_t>(kRows + kSlots) * kStageK * 2;
template <int kSlots>
constexpr size_t kShared = std::max(kStages* kStageBytes<kSlots>, sizeof(float) * kSlots * kSumPitch);

// Odd rows have the halves of their 128 bytes exchanged: the lanes of two rows then touch every bank once.
__device__ inline uint32_t vector_offset(int row, int vector) {
  return (row * kVectors + (vector ^ ((row & 1) << 2))) * 16;
}

template <class T, int kSlots>
__global__ void __launch_bounds__(kThreads) expert_linear_grouped_kernel(const __grid_constant__ GroupedParams p) {
  // Warps along the slots where that makes a warp's share square: fewer reads of shared memory for its products.
  constexpr int kSlotWarps = kSlots >= 128 ? 2 : 1, kRowWarps = kWarps / kSlotWarps;
  constexpr int kM = kRows / kRowWarps / 16, kN = kSlots / kSlotWarps / 8;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ int32_t slots[kSlots];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.x * kRows;
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (blockIdx.y >= *p.order.tile_count) return;
  const ExpertTile tile = p.order.tiles[blockIdx.y];
  for (int i = threadIdx.x; i < kSlots; i += kThreads) {
    slots[i] = tile.first + i < tile.last ? p.order.slots[tile.first + i] : -1;
  }
  __syncthreads();
  if (tile.expert < 0) {  // another rank's: zeros
    const int width = p.output.slot_width();
    for (int i = threadIdx.x; i < kSlots * kRows; i += kThreads) {
      const int slot = slots[i / kRows], at = first_row + i % kRows;
      if (slot >= 0 && at < width) store(p.output.y, int64_t{slot} * width + at, 0.0f);
    }
    return;
  }

  const T* weight = static_cast<const T*>(p.weight) + int64_t{tile.expert} * p.output.out * p.in;
  const int steps = (p.in + kStageK - 1) / kStageK;
  const uint32_t base = ptx::shared_address(shared);
  const auto request = [&](int step) {
    if (step < steps) {
      const uint32_t to = base + static_cast<uint32_t>(step % kStages * kStageBytes<kSlots>);
      const int k0 = step * kStageK;
#pragma unroll
      for (int i = threadIdx.x; i < kRows * kVectors; i += kThreads) {
        const int row = i / kVectors, vector = i % kVectors, k = k0 + vector * 8;
        const bool inside = first_row + row < p.output.out && k < p.in;
        const T* from = weight + (inside ? static_cast<int64_t>(first_row + row) * p.in + k : 0);
        ptx::copy_async_16(to + vector_offset(row, vector), from, inside ? 16 : 0);
      }
#pragma unroll
      for (int i = threadIdx.x; i < kSlots * kVectors; i += kThreads) {
        const int row = i / kVectors, vector = i % kVectors, k = k0 + vector * 8, slot = slots[row];
        const bool inside = slot >= 0 && k < p.in;
        const int64_t x_row = p.per_slot ? slot : slot / p.top_k;
        const T* from = static_cast<const T*>(p.x) + (inside ? x_row * p.in + k : 0);
        ptx::copy_async_16(to + kRows * kStageK * 2 + vector_offset(row, vector), from, inside ? 16 : 0);
      }
    }
    ptx::copy_async_commit();
  };
  for (int i = 0; i + 1 < kStages; ++i) request(i);

  const int row0 = warp % kRowWarps * (kM * 16), slot0 = warp / kRowWarps * (kN * 8);
  float c[kM][kN][4] = {};
  for (int step = 0; step < steps; ++step) {
    ptx::copy_async_wait<kStages - 2>();
    __syncthreads();  // the stage has arrived for all threads, and the one before it has been read by all
    request(step + kStages - 1);
    const uint8_t* stage = shared + step % kStages * kStageBytes<kSlots>;
    const uint8_t* x = stage + kRows * kStageK * 2;
#pragma unroll
    for (int i = 0; i < kStageK / 32; ++i) {
      const int vector = 4 * i + t;
      uint4 lo[kM], hi[kM];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        lo[m] = *reinterpret_cast<const uint4*>(stage + vector_offset(row0 + 16 * m + g, vector));
        hi[m] = *reinterpret_cast<const uint4*>(stage + vector_offset(row0 + 16 * m + g + 8, vector));
      }
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const uint4 b = *reinterpret_cast<const uint4*>(x + vector_offset(slot0 + 8 * n + g, vector));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          ptx::mma_m16n8k16<T>(c[m][n], {lo[m].x, hi[m].x, lo[m].y, hi[m].y}, b.x, b.y);
          ptx::mma_m16n8k16<T>(c[m][n], {lo[m].z, hi[m].z, lo[m].w, hi[m].w}, b.z, b.w);
        }
      }
    }
  }
  ptx::copy_async_wait<0>();
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);  // [kSlots][kSumPitch]
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      float* to = sums + (slot0 + 8 * n + 2 * t) * kSumPitch + row0 + 16 * m + g;
      to[0] = c[m][n][0], to[kSumPitch] = c[m][n][1], to[8] = c[m][n][2], to[kSumPitch + 8] = c[m][n][3];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSlots * kRows / 4; i += kThreads) {
    const int column = i / (kRows / 4), row = i % (kRows / 4) * 4, slot = slots[column];
    if (slot < 0) break;  // the slots of a tile are its first columns
    const float4 s = *reinterpret_cast<const float4*>(sums + column * kSumPitch + row);
    float v[4] = {s.x, s.y, s.z, s.w};
    if (first_row + row < p.output.out) store_expert_rows<4>(p.output, slot, tile.expert, first_row + row, v);
  }
}

// Slots per block: about one and a half times what an expert gets on average, so that few tiles are cut.
int tile_slots(int64_t slots, int64_t experts) {
  const int64_t each = slots / experts;
  return each <= 10 ? 16 : each <= 21 ? 32 : each <= 34 ? 48 : each <= 80 ? 64 : 128;
}

template <class T, int kSlots>
void launch_grouped(const ExpertLinearProblem& p, std::span<std::byte> workspace, Stream& stream) {
  const ExpertOrder order = order_experts(p, kSlots, workspace, stream);
  launch<expert_linear_grouped_kernel<T, kSlots>>(
      {.grid = dim3(blocks_for(p.output.out, kRows), order.most_tiles), .block = kThreads, .shared = kShared<kSlots>},
      GroupedParams{.weight = p.weight,
                    .x = p.x,
                    .output = p.output,
                    .order = order,
                    .in = p.in,
                    .top_k = p.top_k,
                    .per_slot = p.per_slot},
      stream);
}

template <class T>
void launch_grouped(const ExpertLinearProblem& p, std::span<std::byte> workspace, Stream& stream) {
  switch (tile_slots(p.slots, p.experts)) {
    case 16:
      return launch_grouped<T, 16>(p, workspace, stream);
    case 32:
      return launch_grouped<T, 32>(p, workspace, stream);
    case 48:
      return launch_grouped<T, 48>(p, workspace, stream);
    case 64:
      return launch_grouped<T, 64>(p, workspace, stream);
    default:
      return launch_grouped<T, 128>(p, workspace, stream);
  }
}

}  // namespace

size_t expert_linear_grouped_workspace(int64_t slots, int64_t experts) {
  return expert_order_bytes(slots, experts, 16);  // a bound for wider tiles too, and it grows with the slots
}

void expert_linear_grouped(const ExpertLinearProblem& p, std::span<std::byte> workspace, Stream& stream) {
  if (p.slots == 0) return;
  if (p.type == DType::bf16) return launch_grouped<__nv_bfloat16>(p, workspace, stream);
  launch_grouped<__half>(p, workspace, stream);
}

std::string expert_linear_grouped_why_not(DType type, int64_t in) {
  if (type != DType::bf16 && type != DType::f16) return "multiplies bf16 or f16";
  if (in % 8 != 0) return "needs `in` to be a multiple of 8";
  return {};
}

}  // namespace pinion::cuda
