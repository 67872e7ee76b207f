// The one way to launch a kernel. A kernel takes one parameter, `const __grid_constant__ Params`, a plain struct, so
// that the parameters lie in constant memory and the launch is a copy of them:
//
//   struct AddParams { … };
//   __global__ void add_kernel(const __grid_constant__ AddParams p) {
//     ptx::wait_dependencies();   // before the first access to what another kernel of the stream writes or reads
//     …
//   }
//   launch<add_kernel>({.grid = rows, .block = 256}, AddParams{…}, stream);
//
// Dependent launch (PDL, CUDA programming guide "Programmatic Dependent Launch"): the kernel may start before its
// predecessor ended. Every thread block of a kernel launched so must execute ptx::wait_dependencies() exactly as above,
// also when it has nothing to wait for: the next kernel waits for this one alone, so that a kernel that skips the wait
// breaks the chain for everything after it. What no kernel writes (weights) may be requested before the wait.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>

#include "backend/cuda/cuda_error.h"
#include "backend/cuda/cuda_stream.h"

namespace pinion::cuda {

struct LaunchShape {
  dim3 grid = 1, block = 1;  // threads are block.x * block.y * block.z <= 1024
  size_t shared = 0;         // bytes of dynamic shared memory
  bool dependent = true;     // PDL, where the device has it
  int cluster = 1;           // thread blocks of a cluster along x; more than 1 needs compute capability 9
};

inline constexpr int kMaxDevices = 16;

namespace detail {

// Throws CudaError with the kernel's name.
[[noreturn]] void launch_failed(const void* kernel, cudaError_t status, std::source_location at);
void allow_shared(const void* kernel, size_t bytes, std::source_location at);

}  // namespace detail

// Errors: CudaError. A grid without blocks is no launch. Errors of the kernel itself come out of Stream::synchronize.
template <auto Kernel, class Params>
void launch(const LaunchShape& shape, const Params& params, Stream& stream,
            std::source_location at = std::source_location::current()) {
  CudaStream& cuda = cuda_stream(stream);
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  cuda.activate();
  if (shape.shared > 48 * 1024) {  // more than every kernel may take: allowed once per kernel and device
    static std::array<std::atomic<size_t>, kMaxDevices> allowed{};
    std::atomic<size_t>& most = allowed[cuda.device().ordinal];
    if (most.load(std::memory_order_acquire) < shape.shared) {
      detail::allow_shared(reinterpret_cast<const void*>(Kernel), shape.shared, at);
      most.store(shape.shared, std::memory_order_release);
    }
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (const bool whole = cuda.take_whole(); shape.dependent && !whole && cuda.device().dependent_launch()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  config.stream = cuda.handle();
  config.attrs = attributes;
  config.numAttrs = count;
  if (const cudaError_t status = cudaLaunchKernelEx(&config, Kernel, params); status != cudaSuccess) {
    detail::launch_failed(reinterpret_cast<const void*>(Kernel), status, at);
  }
}

}  // namespace pinion::cuda
