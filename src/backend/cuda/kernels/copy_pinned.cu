#include "backend/cuda/kernels/copy_pinned.h"

#include <algorithm>

#include "backend/cuda/launch.h"

namespace pinion::cuda {
namespace {

constexpr unsigned kThreads = 128, kMostBlocks = 128;

struct CopyParams {
  uint4* to = nullptr;
  const uint4* from = nullptr;
  int64_t bytes = 0;
};

// Follows what is before it whole, as what is behind it does: needs no wait.
__global__ void copy_pinned_kernel(const __grid_constant__ CopyParams p) {
  const int64_t all = p.bytes / 16, thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int64_t i = thread; i < all; i += int64_t{gridDim.x} * blockDim.x) p.to[i] = __ldcv(p.from + i);
  if (thread < p.bytes % 16) {
    const int64_t i = all * 16 + thread;
    reinterpret_cast<uint8_t*>(p.to)[i] = __ldcv(reinterpret_cast<const uint8_t*>(p.from) + i);
  }
}

CopyParams params_of(const Upload& u) {
  return {static_cast<uint4*>(u.to), static_cast<const uint4*>(u.pinned), static_cast<int64_t>(u.bytes)};
}
unsigned blocks_for(const Upload& u) {
  return std::min(kMostBlocks, static_cast<unsigned>(u.bytes / 16 / kThreads) + 1);
}

}  // namespace

void copy_pinned(const Upload& upload, Stream& stream) {
  launch<copy_pinned_kernel>({.grid = blocks_for(upload), .block = kThreads, .dependent = false}, params_of(upload),
                             stream);
}

void replace_upload(cudaGraphExec_t exec, cudaGraphNode_t node, const Upload& upload) {
  CopyParams params = params_of(upload);
  void* arguments[] = {&params};
  cudaKernelNodeParams kernel{};
  kernel.func = reinterpret_cast<void*>(copy_pinned_kernel);
  kernel.gridDim = dim3(blocks_for(upload)), kernel.blockDim = dim3(kThreads);
  kernel.kernelParams = arguments;
  cuda_check(cudaGraphExecKernelNodeSetParams(exec, node, &kernel), "cudaGraphExecKernelNodeSetParams");
}

}  // namespace pinion::cuda
