// Linear with the instructions that every GPU since sm_80 has: mma.sync and cp.async. A block computes 32 weight rows
// for up to 64 tokens; two warps along the rows times four along K. How K is cut depends on nothing but the constants
// below, so that a row's sums are the same in any batch.
#include "backend/cuda/kernels/linear.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/copy_async.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mma_sync.h"

namespace pinion::cuda {
namespace {

constexpr int kRows = 32, kRowWarps = kRows / 16, kKWarps = 4, kThreads = kRowWarps * kKWarps * 32;
constexpr int kStageK = 256, kVectors = kStageK / 8;  // k of a stage, and its 16-byte vectors
constexpr int kSumPitch = kRows + 4;
constexpr size_t kMostShared = 96 * 1024;  // what sm_86, 89 and 120 give a block (99 KB)

struct PortableParams {
  const void* weight = nullptr;
  const void* x = nullptr;
  LinearOutput output;
  int32_t in = 0;
};

template <int kTokens>
constexpr size_t kStageBytes = static_cast<size_t>(kRows + kTokens) * kStageK * 2;
template <int kTokens>
constexpr int kStages = kMostShared / kStageBytes<kTokens> < 4 ? static_cast<int>(kMostShared / kStageBytes<kTokens>)
                                                               : 4;

// Odd rows have the halves of each 128 bytes exchanged: the lanes of two rows then touch every bank once.
__device__ inline uint32_t vector_offset(int row, int vector) {
  return (row * kVectors + (vector ^ ((row & 1) << 2))) * 16;
}

template <class T, int kTokens>
__global__ void __launch_bounds__(kThreads) linear_portable_kernel(const __grid_constant__ PortableParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int kGroups = kTokens / 8, kCount = kStages<kTokens>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int row_warp = warp % kRowWarps, k_warp = warp / kRowWarps;
  const int first_row = blockIdx.x * kRows, first_token = blockIdx.y * kTokens;
  const int steps = (p.in + kStageK - 1) / kStageK;
  const uint32_t base = ptx::shared_address(shared);

  const auto copy = [&](const void* from, int first, int last, int count, uint32_t to, int step) {
    for (int i = threadIdx.x; i < count * kVectors; i += kThreads) {
      const int row = i / kVectors, vector = i % kVectors, k = step * kStageK + vector * 8;
      const bool inside = first + row < last && k < p.in;
      const T* at = static_cast<const T*>(from) + (inside ? static_cast<int64_t>(first + row) * p.in + k : 0);
      ptx::copy_async_16(to + vector_offset(row, vector), at, inside ? 16 : 0);
    }
  };
  const auto copy_weight = [&](int step) {
    if (step < steps) {
      copy(p.weight, first_row, p.output.out, kRows, base + static_cast<uint32_t>(step % kCount * kStageBytes<kTokens>),
           step);
    }
  };
  const auto copy_x = [&](int step) {
    if (step < steps) {
      copy(p.x, first_token, p.output.tokens, kTokens,
           base + static_cast<uint32_t>(step % kCount * kStageBytes<kTokens> + kRows * kStageK * 2), step);
    }
    ptx::copy_async_commit();
  };
  for (int i = 0; i + 1 < kCount; ++i) copy_weight(i);  // weights depend on no kernel
  ptx::launch_dependents();
  ptx::wait_dependencies();
  for (int i = 0; i + 1 < kCount; ++i) copy_x(i);

  float c[kGroups][4] = {};
  for (int step = 0; step < steps; ++step) {
    ptx::copy_async_wait<kCount - 2>();
    __syncthreads();  // the stage has arrived for all threads, and the one before it has been read by all
    copy_weight(step + kCount - 1);
    copy_x(step + kCount - 1);
    const uint8_t* stage = shared + step % kCount * kStageBytes<kTokens>;
    const uint8_t* x = stage + kRows * kStageK * 2;
#pragma unroll
    for (int i = 0; i < kStageK / kKWarps / 32; ++i) {
      const int vector = k_warp * (kVectors / kKWarps) + 4 * i + t;
      const uint4 lo = *reinterpret_cast<const uint4*>(stage + vector_offset(row_warp * 16 + g, vector));
      const uint4 hi = *reinterpret_cast<const uint4*>(stage + vector_offset(row_warp * 16 + g + 8, vector));
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        const uint4 b = *reinterpret_cast<const uint4*>(x + vector_offset(8 * n + g, vector));
        ptx::mma_m16n8k16<T>(c[n], {lo.x, hi.x, lo.y, hi.y}, b.x, b.y);
        ptx::mma_m16n8k16<T>(c[n], {lo.z, hi.z, lo.w, hi.w}, b.z, b.w);
      }
    }
  }
  ptx::copy_async_wait<0>();
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);  // [kKWarps][kTokens][kSumPitch]
  {
    float* to = sums + (k_warp * kTokens + 2 * t) * kSumPitch + row_warp * 16 + g;
#pragma unroll
    for (int n = 0; n < kGroups; ++n, to += 8 * kSumPitch) {
      to[0] = c[n][0], to[kSumPitch] = c[n][1], to[8] = c[n][2], to[kSumPitch + 8] = c[n][3];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kRows / 4; i += kThreads) {
    const int token = i / (kRows / 4), row = i % (kRows / 4) * 4;
    if (first_token + token >= p.output.tokens) continue;
    float v[4] = {};
#pragma unroll
    for (int w = 0; w < kKWarps; ++w) {
      const float4 s = *reinterpret_cast<const float4*>(sums + (w * kTokens + token) * kSumPitch + row);
      v[0] += s.x, v[1] += s.y, v[2] += s.z, v[3] += s.w;
    }
    store_rows<4>(p.output, first_token + token, first_row + row, v);
  }
}

template <class T, int kTokens>
void launch_portable(const LinearProblem& p, Stream& stream) {
  constexpr size_t kSums = sizeof(float) * kKWarps * kTokens * kSumPitch;
  constexpr size_t kRing = kStages<kTokens> * kStageBytes<kTokens>;
  static_assert(kStages<kTokens> >= 2 && kSums <= kRing);
  launch<linear_portable_kernel<T, kTokens>>(
      {.grid = dim3((p.output.out + kRows - 1) / kRows, (p.output.tokens + kTokens - 1) / kTokens),
       .block = kThreads,
       .shared = kRing},
      PortableParams{.weight = p.weight, .x = p.x, .output = p.output, .in = p.in}, stream);
}

template <class T>
void launch_portable(const LinearProblem& p, Stream& stream) {
  if (p.output.tokens <= 8) return launch_portable<T, 8>(p, stream);
  if (p.output.tokens <= 16) return launch_portable<T, 16>(p, stream);
  if (p.output.tokens <= 32) return launch_portable<T, 32>(p, stream);
  launch_portable<T, 64>(p, stream);
}

}  // namespace

void linear_portable(const LinearProblem& p, Stream& stream) {
  if (p.type == DType::bf16) return launch_portable<__nv_bfloat16>(p, stream);
  launch_portable<__half>(p, stream);
}

std::string linear_portable_why_not(DType type, int64_t in) {
  if (type != DType::bf16 && type != DType::f16) return "multiplies bf16 or f16";
  if (in % 8 != 0) return "needs `in` to be a multiple of 8";
  return {};
}

}  // namespace pinion::cuda
