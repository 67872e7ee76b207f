// Linear for up to 128 tokens and many output rows, on Hopper: y = x W^T as it is written, with 64 tokens a warpgroup
// as wgmma's rows and up to 256 weight rows as its columns. Against linear_wgmma, whose blocks have 64 weight rows a
// warpgroup, a block reads its operands from shared memory less often and multiplies no rows that it does not have.
// One warp asks for tiles of W and x with tensor copies into a ring, the first of W before the previous kernel ends,
// and goes on to the block's next tile of rows while the warpgroups leave their results, which takes them no shared
// memory.
//
// Bytes: the weight once, x once a tile of rows (from L2).
#include <cuda.h>

#include <algorithm>

#include "backend/cuda/kernels/linear.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/bulk_copy.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mbarrier.h"
#include "backend/cuda/ptx/wgmma.h"
#include "backend/cuda/tile/tensor_map.h"

namespace pinion::cuda {
namespace {

constexpr int kMaxStages = 8, kLeastRows = 96, kMostRows = 256;
constexpr int kStageK = 64;  // k of a stage: a swizzled row of 128 bytes
constexpr int kRowBytes = 2 * kStageK;
constexpr size_t kSharedBytes = 227 * 1024;  // of a block
constexpr size_t kFixedBytes = 1024 + 512;   // what aligning the ring may cost, and the barriers

struct WideParams {
  CUtensorMap weight, x;
  LinearOutput output;
  int32_t rows = 0;   // of a tile, a multiple of 8
  int32_t tiles = 0;  // block b takes tiles b, b + grid, …
  int32_t steps = 0;  // stages of k of a tile
  int32_t stages = 0;
};

constexpr int stage_bytes(int rows, int groups) {
  return (rows + 64 * groups) * kRowBytes;
}

// Lane t of each four gets element t of every one of them: v[i] from lane i.
__device__ inline void transpose_four(uint32_t (&v)[4], int t) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(~0u, t & 1 ? v[i] : v[i + 1], 1);
    (t & 1 ? v[i] : v[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(~0u, t & 2 ? v[i] : v[i + 2], 2);
    (t & 2 ? v[i] : v[i + 2]) = got;
  }
}

// The ends below get a warpgroup's sums as wgmma leaves them, of tokens `token` and `token + 8`, for `rows` rows from
// first_row on; both are multiples of 8.

// In T: sixteen bytes a lane.
template <class T, int N>
__device__ inline void leave_values(const LinearOutput& o, const float (&sums)[N / 2], int token, int first_row,
                                    int rows) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    T* const to = static_cast<T*>(o.y.data) + int64_t{token + 8 * h} * o.out + first_row + 8 * t;
#pragma unroll
    for (int j = 0; j < N / 8; j += 4) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = ptx::pack<T>(sums[4 * (j + i) + 2 * h], sums[4 * (j + i) + 2 * h + 1]);
      transpose_four(v, t);
      if (token + 8 * h < o.tokens && 8 * (j + t) < rows) {
        *reinterpret_cast<uint4*>(to + 8 * j) = {v[0], v[1], v[2], v[3]};
      }
    }
  }
}

// With the gate, in T: rows 2 i and 2 i + 1, gate and up, lie in one lane. Eight bytes a lane.
template <class T, int N>
__device__ inline void leave_gated(const LinearOutput& o, const float (&sums)[N / 2], int token, int first_row,
                                   int rows) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    T* const to = static_cast<T*>(o.y.data) + int64_t{token + 8 * h} * (o.out / 2) + first_row / 2 + 4 * t;
#pragma unroll
    for (int j = 0; j < N / 8; j += 4) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = __float_as_uint(gated_silu(sums[4 * (j + i) + 2 * h], sums[4 * (j + i) + 2 * h + 1]));
      }
      transpose_four(v, t);
      if (token + 8 * h < o.tokens && 8 * (j + t) < rows) {
        *reinterpret_cast<uint2*>(to + 4 * j) = {ptx::pack<T>(__uint_as_float(v[0]), __uint_as_float(v[1])),
                                                 ptx::pack<T>(__uint_as_float(v[2]), __uint_as_float(v[3]))};
      }
    }
  }
}

// In f32, or of tokens that are not stored the largest one.
template <int N>
__device__ inline void leave_logits(const LinearOutput& o, const float (&sums)[N / 2], int token, int first_row,
                                    int rows) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int mine = token + 8 * h;
    const bool exists = mine < o.tokens, stored = exists && (o.largest.found == nullptr || o.largest.stored[mine] != 0);
    if (stored) {
      float* const to = static_cast<float*>(o.y.data) + int64_t{mine} * o.out + first_row + 2 * t;
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        if (8 * j < rows) *reinterpret_cast<float2*>(to + 8 * j) = {sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]};
      }
    }
    if (__any_sync(~0u, exists && !stored)) {
      float most = sums[2 * h];
      int at = 0;
      bool nan = false;
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        if (8 * j >= rows) continue;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = sums[4 * j + 2 * h + e];
          if (x > most) most = x, at = 8 * j + e;
          nan |= isnan(x);
        }
      }
      if (nan) {  // the lowest of them
        at = INT32_MAX;
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (8 * j < rows && isnan(sums[4 * j + 2 * h + e])) at = min(at, 8 * j + e), most = NAN;
          }
        }
      }
      uint64_t found = packed_logit(logit_key(most), first_row + 2 * t + at);
      found = max(found, __shfl_xor_sync(~0u, found, 1));
      found = max(found, __shfl_xor_sync(~0u, found, 2));
      if (t == 0 && exists && !stored) leave_largest(o.largest, mine, found);
    }
  }
}

// T: __nv_bfloat16 or __half. N: columns of the product; those from p.rows on are multiplied with what lies behind the
// tile, and dropped. Block: kGroups warpgroups that multiply, then the copying warp.
template <class T, int N, int kGroups>
__global__ void __launch_bounds__(kGroups * 128 + 32, 1) linear_wide_kernel(const __grid_constant__ WideParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t barriers[2 * kMaxStages];
  const uint32_t base = (ptx::shared_address(raw) + 1023) & ~1023u;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int weight_bytes = p.rows * kRowBytes, bytes = weight_bytes + 64 * kGroups * kRowBytes;
  const uint32_t full = ptx::shared_address(barriers), empty = full + 8 * kMaxStages;
  const int tiles =
      (p.tiles - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);

  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      ptx::barrier_init(full + 8 * i, 1);
      ptx::barrier_init(empty + 8 * i, 4 * kGroups);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  ptx::launch_dependents();

  if (warp == 4 * kGroups) {  // the copying warp
    if (lane != 0) return;
    int row = static_cast<int>(blockIdx.x) * p.rows, step = 0;  // of the weight's next copy
    const auto copy_weight = [&](int stage) {
      ptx::barrier_expect(full + 8 * stage, bytes);
      ptx::tensor_copy(base + stage * bytes, &p.weight, step * kStageK, row, full + 8 * stage,
                       ptx::CacheHint::evict_first);
      if (++step == p.steps) step = 0, row += static_cast<int>(gridDim.x) * p.rows;
    };
    const auto copy_x = [&](int stage, int k_step) {
      ptx::tensor_copy(base + stage * bytes + weight_bytes, &p.x, k_step * kStageK, 0, full + 8 * stage,
                       ptx::CacheHint::evict_last);
    };
    const int all = tiles * p.steps, ahead = min(p.stages, all);
    for (int i = 0; i < ahead; ++i) copy_weight(i);
    ptx::wait_dependencies();
    for (int i = 0; i < ahead; ++i) copy_x(i, i % p.steps);
    int stage = 0;
    uint32_t parity = 0;
    for (int i = ahead; i < all; ++i) {
      ptx::barrier_wait(empty + 8 * stage, parity);
      const int k_step = step;
      copy_weight(stage);
      copy_x(stage, k_step);
      if (++stage == p.stages) stage = 0, parity ^= 1;
    }
    return;
  }

  ptx::wait_dependencies();
  const int group = warp / 4, token = 16 * warp + lane / 4;
  int stage = 0;
  uint32_t parity = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles; tile += static_cast<int>(gridDim.x)) {
    float sums[N / 2];
    for (int step = 0; step < p.steps; ++step) {
      ptx::barrier_wait(full + 8 * stage, parity);
      const uint64_t w = ptx::wgmma_operand(base + stage * bytes);
      const uint64_t x = ptx::wgmma_operand(base + stage * bytes + weight_bytes + group * 64 * kRowBytes);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kStageK / 16; ++k) ptx::wgmma_64xNx16<T, N>(sums, x + 2 * k, w + 2 * k, step + k > 0);
      ptx::wgmma_commit();
      // Waited for at once: a stage kept until the next one has arrived would be missing among those in flight. The
      // other warpgroup's products fill the gap.
      ptx::wgmma_wait<0>();
      if (lane == 0) ptx::barrier_arrive(empty + 8 * stage);
      if (++stage == p.stages) stage = 0, parity ^= 1;
    }
    const int first_row = tile * p.rows, rows = min(p.rows, p.output.out - first_row);
    if (p.output.y.dtype == DType::f32) {
      leave_logits<N>(p.output, sums, token, first_row, rows);
    } else if (p.output.gated_silu) {
      leave_gated<T, N>(p.output, sums, token, first_row, rows);
    } else {
      leave_values<T, N>(p.output, sums, token, first_row, rows);
    }
  }
#else
  __trap();  // compiled for another GPU, or for sm_90 without its `a`
#endif
}

template <class T, int N, int kGroups>
void launch_wide(const LinearProblem& p, int rows, Stream& stream) {
  WideParams params{.output = p.output, .rows = rows};
  params.tiles = (p.output.out + rows - 1) / rows;
  params.steps = (p.in + kStageK - 1) / kStageK;
  params.stages = std::min(kMaxStages, static_cast<int>(kSharedBytes - kFixedBytes) / stage_bytes(rows, kGroups));
  params.weight = tensor_map({.data = p.weight, .type = p.type, .rows = p.output.out, .columns = p.in}, rows, kStageK);
  params.x = tensor_map({.data = p.x, .type = p.type, .rows = p.output.tokens, .columns = p.in}, 64 * kGroups, kStageK);
  const int sms = cuda_stream(stream).device().multiprocessors;
  launch<linear_wide_kernel<T, N, kGroups>>(
      {.grid = static_cast<unsigned>(std::min(params.tiles, sms)),
       .block = kGroups * 128 + 32,
       .shared = static_cast<size_t>(params.stages) * stage_bytes(rows, kGroups) + 1024},
      params, stream);
}

template <class T, int kGroups>
void launch_wide(const LinearProblem& p, int rows, Stream& stream) {
  if (rows <= 128) return launch_wide<T, 128, kGroups>(p, rows, stream);
  if (rows <= 192) return launch_wide<T, 192, kGroups>(p, rows, stream);
  if (rows <= 224) return launch_wide<T, 224, kGroups>(p, rows, stream);
  launch_wide<T, 256, kGroups>(p, rows, stream);
}

template <class T>
void launch_wide(const LinearProblem& p, int rows, Stream& stream) {
  p.output.tokens <= 64 ? launch_wide<T, 1>(p, rows, stream) : launch_wide<T, 2>(p, rows, stream);
}

// Rows of a tile where every SM takes `waves` of them.
int even_rows(int64_t out, int sms, int64_t waves) {
  return static_cast<int>(((out + sms * waves - 1) / (sms * waves) + 7) / 8 * 8);
}

}  // namespace

void linear_wide(const LinearProblem& p, const WidePlan& plan, Stream& stream) {
  if (p.type == DType::bf16) return launch_wide<__nv_bfloat16>(p, plan.rows, stream);
  launch_wide<__half>(p, plan.rows, stream);
}

std::vector<WidePlan> linear_wide_plans(int64_t out, int sms) {
  const int64_t waves = (out + int64_t{sms} * kMostRows - 1) / (int64_t{sms} * kMostRows);
  std::vector<WidePlan> plans;
  for (const int64_t w : {waves, waves + 1}) {
    if (const int rows = even_rows(out, sms, w); rows >= kLeastRows) plans.push_back({rows});
  }
  return plans;
}

std::string linear_wide_why_not(const LinearProblem& p, int sms) {
  if (p.type != DType::bf16 && p.type != DType::f16) return "multiplies bf16 or f16";
  if (p.output.tokens > 128) return "takes at most 128 rows";
  if (p.in % 8 != 0 || p.output.out % 8 != 0) return "needs `in` and `out` to be multiples of 8";
  if (p.output.gated_silu && p.output.y.dtype == DType::f32) return "leaves gated values in the weight's type";
  if (linear_wide_plans(p.output.out, sms).empty()) return "is for matrices of many rows";
  return {};
}

}  // namespace pinion::cuda
