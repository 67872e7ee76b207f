// Linear for 1 to 16 tokens. A block walks tiles of 16 weight rows; its warps, and the blocks of its cluster, split K.
// Each warp streams its slice of the tiles through a ring of bulk copies that runs on across tiles, and keeps the x of
// its slice in registers. The memory bus is the floor: what counts is bytes in flight (the whole shared memory) and
// that the first of them are requested before the previous kernel ends.
//
// A product over k does not care about the order of k: lane (g, t) reads the 16 bytes at k = 32 i + 8 t of rows g and
// g + 8, and of token g, and calls them the fragments of two mma.sync steps. Row-major weights need no packing.
#include <algorithm>

#include "backend/cuda/kernels/linear.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/bulk_copy.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mbarrier.h"
#include "backend/cuda/ptx/mma_sync.h"

namespace pinion::cuda {
namespace {

constexpr int kTileRows = 16;
constexpr int kMaxWarps = 16;
constexpr int kSumPitch = 20;  // floats from one token's 16 sums to the next: writes and reads meet no bank twice
constexpr size_t kSharedBytes = 227 * 1024, kHalfBytes = 112 * 1024;

struct StreamParams {
  const void* weight = nullptr;
  const void* x = nullptr;
  LinearOutput output;
  int32_t in = 0;
  int32_t tiles = 0;   // of 16 rows
  int32_t slots = 0;   // tiles of the busiest block
  int32_t passes = 0;  // over K
  int32_t stages = 0;  // of a warp's ring
};

// A unit, one step of the ring, is 16 rows x 128 k: small, so that units fill the memory whatever the number of warps.
// Even rows lie one after another, odd rows after them and half a bank line aside, so that the 16-byte reads of lanes
// g = 0, 1 (and 2, 3 …) together touch every bank once.
constexpr int kUnitK = 128, kUnitPitch = kUnitK * 2, kUnitBytes = 16 * kUnitPitch + 128;
[[maybe_unused]] __device__ inline int unit_row(int row) {
  return (row >> 1) * kUnitPitch + (row & 1) * (8 * kUnitPitch + 64);
}

// T: __nv_bfloat16 or __half. kGroups: 8-token groups. A warp's slice is kUnits units. kHead: see
// LinearOutput::largest.
template <class T, int kGroups, int kUnits, bool kHead>
__global__ void __launch_bounds__(kMaxWarps * 32) linear_stream_kernel(const __grid_constant__ StreamParams p) {
#if __CUDA_ARCH__ >= 900
  constexpr int kSteps = kUnitK / 32, kTokens = 8 * kGroups, kSums = kTokens * kSumPitch;
  extern __shared__ __align__(128) uint8_t shared[];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int block = blockIdx.x, blocks = gridDim.x;
  const int tiles = (p.tiles - block + blocks - 1) / blocks;
  const auto first_k = [&](int pass) { return (pass * warps + warp) * kUnitK * kUnits; };
  const auto units_of = [&](int pass) { return min(max((p.in - first_k(pass) + kUnitK - 1) / kUnitK, 0), kUnits); };
  const int units = tiles * ((p.passes - 1) * kUnits + units_of(p.passes - 1));  // only the last pass may have fewer

  uint8_t* ring = shared + warp * p.stages * kUnitBytes;
  float* sums = reinterpret_cast<float*>(shared + warps * p.stages * kUnitBytes);  // [slots][warps][kTokens][kSumPitch]
  const int slots = p.passes == 1 ? 2 : p.slots;
  const uint32_t ring_at = ptx::shared_address(ring);
  const uint32_t full = ptx::shared_address(sums + slots * warps * kSums) + 8 * warp * p.stages;
  uint64_t* most = reinterpret_cast<uint64_t*>(sums + slots * warps * kSums) + warps * p.stages;  // a head's, [kTokens]
  uint32_t kept = 0;  // the tokens whose largest logit alone is kept

  int next_pass = 0, next_tile = 0, next_unit = 0;  // of the copy that is asked for next
  const auto request = [&](int stage) {
    if (lane == 0) ptx::barrier_expect(full + 8 * stage, kTileRows * kUnitPitch);
    __syncwarp();
    if (lane < kTileRows) {
      const int row = min((block + next_tile * blocks) * kTileRows + lane, p.output.out - 1);
      const T* from =
          static_cast<const T*>(p.weight) + static_cast<int64_t>(row) * p.in + first_k(next_pass) + next_unit * kUnitK;
      ptx::bulk_copy(ring_at + stage * kUnitBytes + unit_row(lane), from, kUnitPitch, full + 8 * stage,
                     ptx::CacheHint::evict_first);
    }
    if (++next_unit < units_of(next_pass)) return;
    next_unit = 0;
    if (++next_tile == tiles) next_tile = 0, ++next_pass;
  };
  // Adds up the warps' sums of tile n, always in the same order.
  const auto finish = [&](int slot, int n) {
    for (int i = threadIdx.x; i < 8 * kTokens; i += blockDim.x) {
      const int token = i / 8, pair = i % 8, row = (block + n * blocks) * kTileRows + 2 * pair;
      if (token >= p.output.tokens) continue;
      const float* from = sums + slot * warps * kSums + token * kSumPitch + 2 * pair;
      float v[2] = {};
      for (int w = 0; w < warps; ++w) {
        const float2 s = *reinterpret_cast<const float2*>(from + w * kSums);
        v[0] += s.x, v[1] += s.y;
      }
      if (!kHead || (kept >> token & 1) == 0) {
        store_rows<2>(p.output, token, row, v);
        continue;
      }
      uint64_t found = largest_of_rows<2>(p.output, row, v);
      const uint32_t lanes = 0xffu << (lane & 24);  // of the same token
#pragma unroll
      for (int d = 4; d > 0; d /= 2) found = max(found, __shfl_xor_sync(lanes, found, d));
      if (pair == 0) most[token] = max(most[token], found);
    }
  };

  if (lane == 0) {
    for (int i = 0; i < p.stages; ++i) ptx::barrier_init(full + 8 * i, 1);
    ptx::barrier_init_fence();
  }
  __syncwarp();
  for (int i = 0; i < min(p.stages, units); ++i) request(i);
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if constexpr (kHead) {
    kept = __ballot_sync(~0u, lane < p.output.tokens && p.output.largest.stored[lane] == 0);
    if (threadIdx.x < kTokens) most[threadIdx.x] = 0;  // seen by all behind the barrier before the first finish
  }

  int stage = 0, unit = 0;
  uint32_t parity = 0;
  for (int pass = 0; pass < p.passes; ++pass) {
    const int k0 = first_k(pass), tile_units = units_of(pass);
    uint4 x[kGroups][kUnits * kSteps];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int token = min(8 * group + g, p.output.tokens - 1);  // columns past the last token are not stored
      const T* row = static_cast<const T*>(p.x) + static_cast<int64_t>(token) * p.in + k0 + 8 * t;
#pragma unroll
      for (int i = 0; i < kUnits * kSteps; ++i) {
        x[group][i] = i / kSteps < tile_units ? *reinterpret_cast<const uint4*>(row + 32 * i) : uint4{};
      }
    }
    for (int n = 0; n < tiles; ++n) {
      float c[kGroups][4] = {};
#pragma unroll
      for (int q = 0; q < kUnits; ++q) {
        if (q >= tile_units) break;
        ptx::barrier_wait(full + 8 * stage, parity);
        const uint8_t* w = ring + stage * kUnitBytes + unit_row(g) + 16 * t;
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          const uint4 lo = *reinterpret_cast<const uint4*>(w + 64 * i);
          const uint4 hi = *reinterpret_cast<const uint4*>(w + 4 * kUnitPitch + 64 * i);  // row g + 8
#pragma unroll
          for (int group = 0; group < kGroups; ++group) {
            const uint4& b = x[group][q * kSteps + i];
            ptx::mma_m16n8k16<T>(c[group], {lo.x, hi.x, lo.y, hi.y}, b.x, b.y);
            ptx::mma_m16n8k16<T>(c[group], {lo.z, hi.z, lo.w, hi.w}, b.z, b.w);
          }
        }
        __syncwarp();
        if (unit + p.stages < units) request(stage);
        ++unit;
        if (++stage == p.stages) stage = 0, parity ^= 1;
      }

      const int slot = p.passes == 1 ? n & 1 : n;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        float* at = sums + (slot * warps + warp) * kSums + (8 * group + 2 * t) * kSumPitch + g;
        float* const places[4] = {at, at + kSumPitch, at + 8, at + kSumPitch + 8};
#pragma unroll
        for (int i = 0; i < 4; ++i) *places[i] = (pass == 0 ? 0 : *places[i]) + c[group][i];
      }
      if (p.passes > 1) continue;
      __syncthreads();  // one a tile is enough: the slot is written again only after the next one
      finish(slot, n);
    }
  }
  if (p.passes > 1) {
    __syncthreads();
    for (int n = 0; n < tiles; ++n) finish(n, n);
  }
  if constexpr (kHead) {
    for (int i = threadIdx.x; i < 8 * kTokens; i += blockDim.x) {  // each by the thread that kept it
      if (i % 8 == 0 && (kept >> (i / 8) & 1) != 0) leave_largest(p.output.largest, i / 8, most[i / 8]);
    }
  }
#else
  __trap();  // not listed for such a GPU
#endif
}

// Bytes of the warps' sums: two slots, or one for each tile where the slices of a pass do not cover K.
size_t sum_bytes(const StreamPlan& plan, int tokens, int passes, int tiles_each) {
  return sizeof(float) * (passes == 1 ? 2 : tiles_each) * plan.warps * (tokens <= 8 ? 8 : 16) * kSumPitch;
}

int passes_of(const StreamPlan& plan, int64_t in) {
  const int64_t covered = int64_t{plan.slice} * plan.warps;
  return static_cast<int>((in + covered - 1) / covered);
}

template <class T, int kGroups, int kUnits, bool kHead>
void launch_stream(const LinearProblem& p, const StreamPlan& plan, Stream& stream) {
  StreamParams params{.weight = p.weight, .x = p.x, .output = p.output, .in = p.in};
  params.tiles = (p.output.out + kTileRows - 1) / kTileRows;
  params.passes = passes_of(plan, p.in);
  const int blocks = std::min(cuda_stream(stream).device().multiprocessors, params.tiles);
  params.slots = (params.tiles + blocks - 1) / blocks;
  const size_t sums = sum_bytes(plan, 8 * kGroups, params.passes, params.slots);
  const size_t most_bytes = kHead ? 8 * kGroups * sizeof(uint64_t) : 0;
  const size_t stage = plan.warps * (kUnitBytes + sizeof(uint64_t));
  const size_t most = static_cast<size_t>(params.slots) * kUnits * params.passes;
  const size_t shared = plan.narrow != 0 ? std::max(kHalfBytes, sums + most_bytes + stage) : kSharedBytes;
  params.stages = static_cast<int32_t>(std::min((shared - sums - most_bytes) / stage, most));
  launch<linear_stream_kernel<T, kGroups, kUnits, kHead>>({.grid = static_cast<unsigned>(blocks),
                                                           .block = static_cast<unsigned>(plan.warps * 32),
                                                           .shared = sums + params.stages * stage + most_bytes},
                                                          params, stream);
}

template <class T, int kGroups, int kUnits>
void launch_stream(const LinearProblem& p, const StreamPlan& plan, Stream& stream) {
  p.output.largest.found != nullptr ? launch_stream<T, kGroups, kUnits, true>(p, plan, stream)
                                    : launch_stream<T, kGroups, kUnits, false>(p, plan, stream);
}

template <class T>
void launch_stream(const LinearProblem& p, const StreamPlan& plan, Stream& stream) {
  if (p.output.tokens <= 8) {
    plan.slice == 128 ? launch_stream<T, 1, 1>(p, plan, stream) : launch_stream<T, 1, 2>(p, plan, stream);
  } else {
    plan.slice == 128 ? launch_stream<T, 2, 1>(p, plan, stream) : launch_stream<T, 2, 2>(p, plan, stream);
  }
}

}  // namespace

void linear_stream(const LinearProblem& p, const StreamPlan& plan, Stream& stream) {
  if (p.type == DType::bf16) return launch_stream<__nv_bfloat16>(p, plan, stream);
  launch_stream<__half>(p, plan, stream);
}

std::vector<StreamPlan> linear_stream_plans(int64_t tokens, int64_t in, int64_t out, int sms) {
  std::vector<StreamPlan> plans;
  const int64_t tiles = (out + kTileRows - 1) / kTileRows;
  const int tiles_each = static_cast<int>((tiles + sms - 1) / sms);
  // Sixteen warps empty a full ring soonest, which small matrices feel. As few passes as they allow, and as few warps
  // as those passes need. The wider slice gives fewer passes, the narrower one is for short rows.
  for (int32_t slice : {256, 128}) {
    if (slice == 256 && in < 4 * slice) continue;
    const int64_t slices = (in + slice - 1) / slice, passes = (slices + kMaxWarps - 1) / kMaxWarps;
    const StreamPlan plan{slice, static_cast<int32_t>((slices + passes - 1) / passes)};
    // The sums must leave the ring most of the memory.
    if (sum_bytes(plan, static_cast<int>(tokens), passes_of(plan, in), tiles_each) <= 80 * 1024) plans.push_back(plan);
  }
  for (size_t i = 0, n = plans.size(); i < n; ++i) plans.push_back({plans[i].slice, plans[i].warps, 1});
  return plans;
}

std::string linear_stream_why_not(DType type, int64_t tokens, int64_t in, int64_t out, int sms) {
  if (type != DType::bf16 && type != DType::f16) return "multiplies bf16 or f16";
  if (tokens > 16) return "takes at most 16 rows";
  if (in % 128 != 0) return "needs `in` to be a multiple of 128";
  if (out > (1 << 24) || in > (1 << 24)) return "takes at most 16,777,216 rows and columns of weight";
  if (linear_stream_plans(tokens, in, out, sms).empty()) return "the sums of its passes over K do not fit the SM";
  return {};
}

}  // namespace pinion::cuda
