// Whether this binary holds machine code for the calling thread's GPU.
#pragma once

#include <cuda_runtime.h>

namespace pinion::cuda {

cudaError_t kernels_present();  // cudaErrorNoKernelImageForDevice and its kin: built for other architectures

}  // namespace pinion::cuda
