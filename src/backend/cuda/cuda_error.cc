#include "backend/cuda/cuda_error.h"

namespace pinion::cuda {

std::string describe_failure(std::string_view call, cudaError_t status) {
  return std::string(call) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")";
}

CudaError::CudaError(std::string_view call, cudaError_t failed, std::source_location at)
    : DeviceError("the GPU failed: " + describe_failure(call, failed) + " (" + at.file_name() + ":" +
                  std::to_string(at.line()) + ")"),
      status(failed) {}

}  // namespace pinion::cuda
