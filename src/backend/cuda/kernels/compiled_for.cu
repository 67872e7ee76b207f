#include "backend/cuda/kernels/compiled_for.h"

namespace pinion::cuda {
namespace {

__global__ void presence_kernel() {}

}  // namespace

cudaError_t kernels_present() {
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, presence_kernel);
}

}  // namespace pinion::cuda
