// CUDA's status codes as this project's errors: at run time a failed call throws CudaError (a DeviceError), which names
// the call, CUDA's name and text for the failure, and where it was made; while opening a device it becomes an Error.
#pragma once

#include <cuda_runtime.h>

#include <source_location>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/result.h"

namespace pinion::cuda {

struct CudaError : DeviceError {
  CudaError(std::string_view call, cudaError_t status, std::source_location at);
  cudaError_t status;
};

// "cudaMalloc: out of memory (cudaErrorMemoryAllocation)"
std::string describe_failure(std::string_view call, cudaError_t status);

// Throws CudaError unless the call succeeded; clears the error that CUDA remembers.
inline void cuda_check(cudaError_t status, std::string_view call,
                       std::source_location at = std::source_location::current()) {
  if (status != cudaSuccess) [[unlikely]] {
    (void)cudaGetLastError();
    throw CudaError(call, status, at);
  }
}

}  // namespace pinion::cuda
