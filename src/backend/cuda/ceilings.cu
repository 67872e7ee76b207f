#include "backend/cuda/ceilings.h"

#include <algorithm>
#include <limits>

#include "backend/cuda/cuda_error.h"
#include "backend/cuda/kernels/linear.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/dependency.h"

namespace pinion::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 8;  // in flight per thread
constexpr int kRuns = 6;
constexpr int64_t kMatrix = 8192;

struct ReadParams {
  const uint4* data = nullptr;
  int64_t vectors = 0;
  uint32_t* sink = nullptr;  // written in one case of 2^32, so that nothing is optimised away
};

__global__ void __launch_bounds__(kThreads) read_kernel(const __grid_constant__ ReadParams p) {
  ptx::wait_dependencies();
  constexpr uint64_t kEvictFirst = 0x12F0000000000000;  // createpolicy.fractional.L2::evict_first of all of it
  const int64_t step = int64_t{gridDim.x} * kThreads;
  uint32_t all = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i + (kLoads - 1) * step < p.vectors;
       i += kLoads * step) {
    uint4 v[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                   : "=r"(v[k].x), "=r"(v[k].y), "=r"(v[k].z), "=r"(v[k].w)
                   : "l"(p.data + i + k * step), "l"(kEvictFirst));
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) all ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (all == 0x12345) *p.sink = all;
}

struct FillParams {
  uint16_t* data = nullptr;
  int64_t count = 0;
};

// bf16 numbers in [-1, 1) by a hash: zeros would let the chip clock higher than a model's data do.
__global__ void fill_kernel(const __grid_constant__ FillParams p) {
  ptx::wait_dependencies();
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.count; i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u, h ^= h >> 13;
    const float x = static_cast<float>(h & 0xffff) / 32768.0f - 1.0f;
    p.data[i] = static_cast<uint16_t>(__float_as_uint(x) >> 16);
  }
}

// The fastest of several runs, in milliseconds.
template <class F>
double fastest_ms(CudaStream& stream, F&& run) {
  cudaEvent_t start = nullptr, stop = nullptr;
  cuda_check(cudaEventCreate(&start), "cudaEventCreate");
  cuda_check(cudaEventCreate(&stop), "cudaEventCreate");
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRuns; ++i) {
    cuda_check(cudaEventRecord(start, stream.handle()), "cudaEventRecord");
    run();
    cuda_check(cudaEventRecord(stop, stream.handle()), "cudaEventRecord");
    cuda_check(cudaEventSynchronize(stop), "cudaEventSynchronize");
    float ms = 0;
    cuda_check(cudaEventElapsedTime(&ms, start, stop), "cudaEventElapsedTime");
    if (i > 0) best = std::min<double>(best, ms);
  }
  (void)cudaEventDestroy(start);
  (void)cudaEventDestroy(stop);
  return best;
}

double measure_read(CudaStream& stream, std::byte* data, size_t bytes) {
  double best = 0;
  for (int blocks : {4, 8, 16}) {
    const unsigned grid = static_cast<unsigned>(blocks * stream.device().multiprocessors);
    const int64_t step = int64_t{kLoads} * kThreads * grid;
    const ReadParams p{.data = reinterpret_cast<const uint4*>(data),
                       .vectors = static_cast<int64_t>(bytes / sizeof(uint4)) / step * step,
                       .sink = reinterpret_cast<uint32_t*>(data)};
    const double ms = fastest_ms(stream, [&] { launch<read_kernel>({.grid = grid, .block = kThreads}, p, stream); });
    best = std::max(best, static_cast<double>(p.vectors) * sizeof(uint4) / ms * 1e-6);
  }
  return best;
}

Result<double> measure_matrix(Device& device, CudaStream& stream, std::byte* data) {
  if (!linear_large_why_not().empty()) return 0.0;
  constexpr int64_t kElements = kMatrix * kMatrix;
  const size_t work = linear_large_workspace(DType::bf16, kMatrix, kMatrix, false);
  PINION_TRY(auto workspace, device.allocate(work));
  LinearProblem p{.weight = data, .x = data + 2 * kElements, .in = static_cast<int32_t>(kMatrix)};
  p.output.y = {data + 4 * kElements, DType::bf16};
  p.output.out = static_cast<int32_t>(kMatrix), p.output.tokens = static_cast<int32_t>(kMatrix);
  double best = 0;
  for (const LargePlan& plan : linear_large_plans(p, stream.device().ordinal)) {
    const double ms = fastest_ms(stream, [&] { linear_large(p, plan, {workspace->data(), work}, stream); });
    best = std::max(best, 2.0 * kMatrix * kElements / ms * 1e-6);
  }
  return best;
}

}  // namespace

Result<Ceilings> measure_ceilings(Device& device, size_t bytes) {
  bytes = std::max(bytes, size_t{3} * kMatrix * kMatrix * sizeof(uint16_t));
  auto stream = device.make_stream();
  PINION_TRY(auto buffer, device.allocate(bytes));
  CudaStream& cuda = cuda_stream(*stream);
  launch<fill_kernel>({.grid = 4096, .block = 256},
                      FillParams{reinterpret_cast<uint16_t*>(buffer->data()), static_cast<int64_t>(bytes / 2)}, cuda);
  Ceilings c{.read_gbps = measure_read(cuda, buffer->data(), bytes)};
  PINION_TRY(c.matrix_gflops, measure_matrix(device, cuda, buffer->data()));
  return c;
}

}  // namespace pinion::cuda
