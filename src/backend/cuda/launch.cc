#include "backend/cuda/launch.h"

namespace pinion::cuda::detail {
namespace {

std::string kernel_name(const void* kernel) {
  const char* name = nullptr;
  return cudaFuncGetName(&name, kernel) == cudaSuccess && name != nullptr ? name : "unknown kernel";
}

}  // namespace

void launch_failed(const void* kernel, cudaError_t status, std::source_location at) {
  const std::string name = kernel_name(kernel);
  (void)cudaGetLastError();
  throw CudaError("launch of " + name, status, at);
}

void allow_shared(const void* kernel, size_t bytes, std::source_location at) {
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status == cudaSuccess) return;
  const std::string name = kernel_name(kernel);
  (void)cudaGetLastError();
  throw CudaError(std::to_string(bytes) + " bytes of shared memory for " + name, status, at);
}

}  // namespace pinion::cuda::detail
