// The two ends of absorbed latent attention: queries times W_UK, and weighted sums of latents times W_UV, a small
// matrix of its own for every head.
#include <algorithm>

#include "backend/cuda/kernels/mla.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/copy_async.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mma_sync.h"
#include "backend/cuda/tile/reduce.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;

struct ProjectParams {
  const void* x = nullptr;
  const void* weight = nullptr;  // kv_b
  void* y = nullptr;
  int32_t tokens = 0, heads = 0, nope = 0, rope = 0, rank = 0, v = 0;
};

// ---- absorb: y[t, h] = q_nope W_UK_h | q_pe ----

constexpr int kColumns = 128, kStageK = 64;  // of W_UK: columns of a block, rows of a step
constexpr int kXPitch = kStageK + 8, kWPitch = kColumns + 8;

// A block: kTokens tokens x 128 columns of one head. T: __nv_bfloat16 or __half.
template <class T, int kTokens>
__global__ void __launch_bounds__(kThreads) mla_absorb_kernel(const __grid_constant__ ProjectParams p) {
  constexpr int kRowWarps = kTokens / 16, kColumnWarps = kWarps / kRowWarps, kN = kColumns / kColumnWarps / 8;
  static_assert(kN % 2 == 0);
  __shared__ __align__(128) T x[kTokens * kXPitch], w[kStageK * kWPitch];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, head = blockIdx.y;
  const int first = blockIdx.z * kTokens, column0 = blockIdx.x * kColumns, width = p.rank + p.rope;
  const int64_t q_width = p.nope + p.rope;
  const T* weight = static_cast<const T*>(p.weight) + int64_t{head} * (p.nope + p.v) * p.rank;
  const T* q = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const auto request_w = [&](int k0) {  // depends on no kernel
    for (int i = threadIdx.x; i < kStageK * kColumns / 8; i += kThreads) {
      const int k = i / (kColumns / 8), column = i % (kColumns / 8) * 8;
      const bool inside = k0 + k < p.nope && column0 + column < p.rank;
      const T* from = weight + (inside ? static_cast<int64_t>(k0 + k) * p.rank + column0 + column : 0);
      ptx::copy_async_16(ptx::shared_address(w + k * kWPitch + column), from, inside ? 16 : 0);
    }
  };
  request_w(0);
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (blockIdx.x == 0) {  // the rotated columns pass through
    for (int i = threadIdx.x; i < kTokens * p.rope; i += kThreads) {
      const int token = first + i / p.rope;
      if (token >= p.tokens) break;
      const int64_t row = int64_t{token} * p.heads + head;
      y[row * width + p.rank + i % p.rope] = q[row * q_width + p.nope + i % p.rope];
    }
  }
  const int row0 = warp % kRowWarps * 16, n0 = warp / kRowWarps * kN * 8;
  float c[kN][4] = {};
  for (int k0 = 0; k0 < p.nope; k0 += kStageK) {
    if (k0 > 0) {
      __syncthreads();
      request_w(k0);
    }
    for (int i = threadIdx.x; i < kTokens * kStageK / 8; i += kThreads) {
      const int row = i / (kStageK / 8), k = i % (kStageK / 8) * 8;
      const bool inside = first + row < p.tokens && k0 + k < p.nope;
      const T* from = q + (inside ? (static_cast<int64_t>(first + row) * p.heads + head) * q_width + k0 + k : 0);
      ptx::copy_async_16(ptx::shared_address(x + row * kXPitch + k), from, inside ? 16 : 0);
    }
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kStageK; k += 16) {
      uint32_t a[4];
      ptx::load_matrix_x4(a, ptx::shared_address(x + (row0 + lane % 16) * kXPitch + k + lane / 16 * 8));
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t b[4];
        ptx::load_matrix_x4_transposed(b,
                                       ptx::shared_address(w + (k + lane % 16) * kWPitch + n0 + n * 8 + lane / 16 * 8));
        ptx::mma_m16n8k16<T>(c[n], a, b[0], b[1]);
        ptx::mma_m16n8k16<T>(c[n + 1], a, b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const int column = column0 + n0 + 8 * n + 2 * t;
    if (column >= p.rank) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first + row0 + g + 8 * half;
      if (token >= p.tokens) continue;
      const int64_t at = (int64_t{token} * p.heads + head) * width + column;
      *reinterpret_cast<uint32_t*>(y + at) = ptx::pack<T>(c[n][2 * half], c[n][2 * half + 1]);
    }
  }
}

// ---- project: y[t, h] = W_UV_h o[t, h] ----

template <class T>
__device__ inline float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
}

// A warp keeps kWarpRows rows of W_UV in registers, asked for before the kernels before it end, for all tokens in turn.
// For a few tokens, whose latents stay in L1.
constexpr int kWarpRows = 4, kVectors = 2;  // 16-byte vectors of a row a lane: rank <= 512

template <class T>
__global__ void __launch_bounds__(kThreads) mla_project_few_kernel(const __grid_constant__ ProjectParams p) {
  const int lane = threadIdx.x % 32, groups = (p.v + kWarpRows - 1) / kWarpRows;
  const int unit = blockIdx.x * kWarps + threadIdx.x / 32, head = min(unit / groups, p.heads - 1);
  const int row = unit % groups * kWarpRows;
  const T* w = static_cast<const T*>(p.weight) + (int64_t{head} * (p.nope + p.v) + p.nope) * p.rank;
  constexpr DType kType = std::is_same_v<T, __nv_bfloat16> ? DType::bf16 : DType::f16;
  uint4 weight[kWarpRows][kVectors];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int k = lane * 8 + 256 * i;
      weight[r][i] = k < p.rank
                         ? *reinterpret_cast<const uint4*>(w + static_cast<int64_t>(min(row + r, p.v - 1)) * p.rank + k)
                         : uint4{};
    }
  }
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (unit >= p.heads * groups) return;
  for (int token = 0; token < p.tokens; ++token) {
    const int64_t at = int64_t{token} * p.heads + head;
    float sum[kWarpRows] = {};
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int k = lane * 8 + 256 * i;
      if (k >= p.rank) break;
      float x[8];
      load<8>(ConstValues{p.x, kType}, at * p.rank + k, x);
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        const uint32_t pairs[4] = {weight[r][i].x, weight[r][i].y, weight[r][i].z, weight[r][i].w};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const float2 v = unpack<T>(pairs[n]);
          sum[r] += x[2 * n] * v.x, sum[r] += x[2 * n + 1] * v.y;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const float y = warp_sum(sum[r]);
      if (lane == 0 && row + r < p.v) store(Values{p.y, kType}, at * p.v + row + r, y);
    }
  }
}

constexpr int kTileTokens = 64, kTileV = 64;
constexpr int kOPitch = kStageK + 8;

// A block: 64 tokens x 64 rows of W_UV of one head.
template <class T>
__global__ void __launch_bounds__(kThreads) mla_project_kernel(const __grid_constant__ ProjectParams p) {
  __shared__ __align__(128) T x[2][kTileTokens * kOPitch], w[2][kTileV * kOPitch];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, head = blockIdx.y;
  const int first = blockIdx.z * kTileTokens, v0 = blockIdx.x * kTileV;
  const T* weight = static_cast<const T*>(p.weight) + (int64_t{head} * (p.nope + p.v) + p.nope) * p.rank;
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const int steps = (p.rank + kStageK - 1) / kStageK;
  const auto request = [&](int step) {
    if (step < steps) {
      for (int i = threadIdx.x; i < kTileTokens * kStageK / 8; i += kThreads) {
        const int row = i / (kStageK / 8), k = i % (kStageK / 8) * 8, at = step * kStageK + k;
        const bool in_x = first + row < p.tokens && at < p.rank, in_w = v0 + row < p.v && at < p.rank;
        const T* o = static_cast<const T*>(p.x);
        o += in_x ? (static_cast<int64_t>(first + row) * p.heads + head) * p.rank + at : 0;
        ptx::copy_async_16(ptx::shared_address(x[step % 2] + row * kOPitch + k), o, in_x ? 16 : 0);
        const T* from = weight + (in_w ? static_cast<int64_t>(v0 + row) * p.rank + at : 0);
        ptx::copy_async_16(ptx::shared_address(w[step % 2] + row * kOPitch + k), from, in_w ? 16 : 0);
      }
    }
    ptx::copy_async_commit();
  };
  request(0);
  const int row0 = warp % 4 * 16, n0 = warp / 4 * 32;
  float c[4][4] = {};
  for (int step = 0; step < steps; ++step) {
    request(step + 1);
    ptx::copy_async_wait<1>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kStageK; k += 16) {
      uint32_t a[4];
      ptx::load_matrix_x4(a, ptx::shared_address(x[step % 2] + (row0 + lane % 16) * kOPitch + k + lane / 16 * 8));
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        uint32_t b[4];  // matrices: rows n … n + 7 at k and k + 8, rows n + 8 … likewise
        const int row = n0 + n * 8 + lane / 16 * 8 + lane % 8;
        ptx::load_matrix_x4(b, ptx::shared_address(w[step % 2] + row * kOPitch + k + lane / 8 % 2 * 8));
        ptx::mma_m16n8k16<T>(c[n], a, b[0], b[1]);
        ptx::mma_m16n8k16<T>(c[n + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();  // read by all before the next but one arrives
  }
  T* y = static_cast<T*>(p.y);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = v0 + n0 + 8 * n + 2 * t + i % 2, token = first + row0 + g + i / 2 * 8;
      if (column >= p.v || token >= p.tokens) continue;
      const int64_t at = (int64_t{token} * p.heads + head) * p.v + column;
      y[at] = static_cast<T>(c[n][i]);
    }
  }
}

ProjectParams params_of(const LaunchArgs& args, int64_t tokens) {
  const auto& op = std::get<MlaAttention>(*args.op);
  return {.weight = args.weights[0].data,
          .tokens = static_cast<int32_t>(tokens),
          .heads = static_cast<int32_t>(op.heads),
          .nope = static_cast<int32_t>(op.nope),
          .rope = static_cast<int32_t>(op.rope),
          .rank = static_cast<int32_t>(op.rank),
          .v = static_cast<int32_t>(op.v)};
}

template <class T>
void absorb(const ProjectParams& p, Stream& stream) {
  const auto grid = [&](int tokens) {
    return dim3(blocks_for(p.rank, kColumns), p.heads, blocks_for(p.tokens, tokens));
  };
  if (p.tokens <= 16) {
    launch<mla_absorb_kernel<T, 16>>({.grid = grid(16), .block = kThreads}, p, stream);
  } else {
    launch<mla_absorb_kernel<T, 64>>({.grid = grid(64), .block = kThreads}, p, stream);
  }
}

template <class T>
void project(const ProjectParams& p, bool few, Stream& stream) {
  if (few) {
    const int64_t units = int64_t{p.heads} * ((p.v + kWarpRows - 1) / kWarpRows);
    launch<mla_project_few_kernel<T>>({.grid = blocks_for(units, kWarps), .block = kThreads}, p, stream);
  } else {
    launch<mla_project_kernel<T>>(
        {.grid = dim3(blocks_for(p.v, kTileV), p.heads, blocks_for(p.tokens, kTileTokens)), .block = kThreads}, p,
        stream);
  }
}

}  // namespace

void mla_absorb(const LaunchArgs& args, const MlaLatents& latents, int64_t first_token, int64_t tokens,
                Stream& stream) {
  ProjectParams p = params_of(args, tokens);
  p.x = static_cast<const std::byte*>(args.in[0].data) + first_token * p.heads * (p.nope + p.rope) * 2;
  p.y = const_cast<void*>(latents.q);
  args.in[0].dtype == DType::bf16 ? absorb<__nv_bfloat16>(p, stream) : absorb<__half>(p, stream);
}

void mla_project(const LaunchArgs& args, const MlaLatents& latents, int64_t first_token, int64_t tokens, bool few,
                 Stream& stream) {
  ProjectParams p = params_of(args, tokens);
  p.x = latents.o;
  p.y = static_cast<std::byte*>(args.out[0].data) + first_token * p.heads * p.v * 2;
  args.in[0].dtype == DType::bf16 ? project<__nv_bfloat16>(p, few, stream) : project<__half>(p, few, stream);
}

}  // namespace pinion::cuda
