// Linear for one token. Each warp walks output rows of its own and streams them through a ring of bulk copies, so that
// nothing but the memory bus holds it up: no barrier across warps, and the first rows are requested before the previous
// kernel ends. Measured idea: bytes in flight count first (about 190 KB an SM), then the early request.
#include <algorithm>

#include "backend/cuda/kernels/linear.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/bulk_copy.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mbarrier.h"
#include "backend/cuda/ptx/mma_sync.h"

namespace pinion::cuda {
namespace {

constexpr int kMaxWarps = 16;
constexpr int kMaxUnit = 4096;  // k of one bulk copy: 8 KB
constexpr int32_t kMaxIn = 32768;
constexpr size_t kSharedBytes = 227 * 1024;

struct GemvParams {
  const void* weight = nullptr;
  const void* x = nullptr;
  LinearOutput output;
  int32_t in = 0;
  int32_t unit = 0;    // k of one copy, a multiple of 8; the last of a row may be shorter
  int32_t slices = 0;  // copies of a row
  int32_t stages = 0;
};

template <class T>
__device__ inline float2 widen(uint32_t pair);
template <>
[[maybe_unused]] __device__ inline float2 widen<__nv_bfloat16>(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
template <>
[[maybe_unused]] __device__ inline float2 widen<__half>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

template <class T>
__device__ inline void add_products(float (&sum)[2], uint32_t w, uint32_t x) {
  const float2 a = widen<T>(w), b = widen<T>(x);
  sum[0] += a.x * b.x, sum[1] += a.y * b.y;
}

// kRows: output rows that a warp finishes together, 2 where a gate needs its up row. kHead: see LinearOutput::largest.
template <class T, int kRows, bool kHead = false>
__global__ void __launch_bounds__(kMaxWarps * 32) linear_gemv_kernel(const __grid_constant__ GemvParams p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t shared[];
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int walker = blockIdx.x * warps + warp, walkers = gridDim.x * warps, sets = p.output.out / kRows;
  const int units = (walker < sets ? (sets - walker + walkers - 1) / walkers : 0) * kRows * p.slices;
  const int unit_bytes = p.unit * 2;

  uint8_t* ring = shared + warp * p.stages * unit_bytes;
  uint4* x = reinterpret_cast<uint4*>(shared + warps * p.stages * unit_bytes);
  uint64_t* barriers = reinterpret_cast<uint64_t*>(x + p.in / 8) + warp * p.stages;
  const uint32_t ring_at = ptx::shared_address(ring), full = ptx::shared_address(barriers);

  int next_set = walker, next_row = 0, next_slice = 0;  // of the copy that is asked for next; lane 0's
  const auto request = [&](int stage) {
    const int k = next_slice * p.unit, bytes = min(p.unit, p.in - k) * 2;
    ptx::barrier_expect(full + 8 * stage, bytes);
    const T* from = static_cast<const T*>(p.weight) + (static_cast<int64_t>(next_set) * kRows + next_row) * p.in + k;
    ptx::bulk_copy(ring_at + stage * unit_bytes, from, bytes, full + 8 * stage, ptx::CacheHint::evict_first);
    if (++next_slice < p.slices) return;
    next_slice = 0;
    if (++next_row == kRows) next_row = 0, next_set += walkers;
  };

  if (lane == 0) {
    for (int i = 0; i < p.stages; ++i) ptx::barrier_init(full + 8 * i, 1);
    ptx::barrier_init_fence();
    for (int i = 0; i < min(p.stages, units); ++i) request(i);
  }
  ptx::launch_dependents();
  ptx::wait_dependencies();
  for (int i = threadIdx.x; i < p.in / 8; i += blockDim.x) x[i] = static_cast<const uint4*>(p.x)[i];
  __syncthreads();

  const bool keeps = kHead && p.output.largest.stored[0] == 0;
  uint64_t most = 0;  // of a head's logits, lane 0's
  int stage = 0;
  uint32_t parity = 0;
  int unit = 0;
  for (int set = walker; set < sets; set += walkers) {
    float done[2] = {};
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float sum[2] = {};
      for (int slice = 0; slice < p.slices; ++slice) {
        const int vectors = min(p.unit, p.in - slice * p.unit) / 8;
        ptx::barrier_wait(full + 8 * stage, parity);
        const uint4* w = reinterpret_cast<const uint4*>(ring + stage * unit_bytes);
        const uint4* xs = x + slice * p.unit / 8;
#pragma unroll 8
        for (int i = lane; i < vectors; i += 32) {
          const uint4 a = w[i], b = xs[i];
          add_products<T>(sum, a.x, b.x), add_products<T>(sum, a.y, b.y);
          add_products<T>(sum, a.z, b.z), add_products<T>(sum, a.w, b.w);
        }
        __syncwarp();
        if (lane == 0 && unit + p.stages < units) request(stage);
        ++unit;
        if (++stage == p.stages) stage = 0, parity ^= 1;
      }
      float v = sum[0] + sum[1];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
      done[row] = v;
    }
    if (lane == 0) {
      if constexpr (kRows == 2) {
        store_rows<2>(p.output, 0, 2 * set, done);
      } else if (kHead && keeps) {
        most = max(most, largest_of_rows<1>(p.output, set, {done[0]}));
      } else {
        if (p.output.bias.data != nullptr) done[0] += load(p.output.bias, set);
        store(p.output.y, set, done[0]);
      }
    }
  }
  if constexpr (kHead) {
    if (!keeps) return;
    if (lane == 0) *reinterpret_cast<uint64_t*>(ring) = most;  // all of it has been read
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < warps; ++w) {
      most = max(most, *reinterpret_cast<const uint64_t*>(shared + w * p.stages * unit_bytes));
    }
    leave_largest(p.output.largest, 0, most);
  }
#else
  __trap();  // not listed for such a GPU
#endif
}

template <class T>
void launch_gemv(const LinearProblem& p, const GemvPlan& plan, Stream& stream) {
  const int warps = plan.warps == kMaxWarps ? kMaxWarps : kMaxWarps / 2;
  const int sms = cuda_stream(stream).device().multiprocessors;
  GemvParams params{.weight = p.weight, .x = p.x, .output = p.output, .in = p.in};
  // Copies of equal size, multiples of a warp's 256 elements where that is possible, and at least three of them a warp.
  const size_t free = kSharedBytes - static_cast<size_t>(p.in) * 2;
  const int most = std::min<int>(kMaxUnit, static_cast<int>(free / warps / 3 / 2 - 8));
  params.slices = (p.in + most - 1) / most;
  params.unit = ((p.in + params.slices - 1) / params.slices + 7) / 8 * 8;
  if (const int whole = (params.unit + 255) / 256 * 256; whole <= most) params.unit = whole;
  params.slices = (p.in + params.unit - 1) / params.unit;
  const size_t stage = warps * (static_cast<size_t>(params.unit) * 2 + sizeof(uint64_t));
  const int rows = p.output.gated_silu ? 2 : 1, sets = p.output.out / rows;
  const int blocks = std::min(sms, (sets + warps - 1) / warps), walkers = blocks * warps;
  const size_t filled = static_cast<size_t>((sets + walkers - 1) / walkers) * rows * params.slices;  // units of a warp
  params.stages = static_cast<int32_t>(plan.narrow != 0 ? std::min(free / stage, filled) : free / stage);
  const LaunchShape shape{.grid = static_cast<unsigned>(blocks),
                          .block = static_cast<unsigned>(warps * 32),
                          .shared = static_cast<size_t>(p.in) * 2 + params.stages * stage};
  if (p.output.gated_silu) {
    launch<linear_gemv_kernel<T, 2>>(shape, params, stream);
  } else if (p.output.largest.found != nullptr) {
    launch<linear_gemv_kernel<T, 1, true>>(shape, params, stream);
  } else {
    launch<linear_gemv_kernel<T, 1>>(shape, params, stream);
  }
}

}  // namespace

void linear_gemv(const LinearProblem& p, const GemvPlan& plan, Stream& stream) {
  if (p.type == DType::bf16) return launch_gemv<__nv_bfloat16>(p, plan, stream);
  launch_gemv<__half>(p, plan, stream);
}

std::vector<GemvPlan> linear_gemv_plans(int64_t in, int64_t out, int sms) {
  std::vector<GemvPlan> plans{{8, 0}, {16, 0}};
  // Where the whole matrix does not fill the SMs' shared memory.
  if (in * out * 2 < static_cast<int64_t>(kSharedBytes) * sms) plans.insert(plans.end(), {{8, 1}, {16, 1}});
  return plans;
}

std::string linear_gemv_why_not(DType type, int64_t tokens, int64_t in) {
  if (type != DType::bf16 && type != DType::f16) return "multiplies bf16 or f16";
  if (tokens > 1) return "takes one row";
  if (in % 8 != 0) return "needs `in` to be a multiple of 8";
  if (in > kMaxIn) return "takes `in` up to 32,768: x lies in shared memory";
  return {};
}

}  // namespace pinion::cuda
