// Programmatic dependent launch (PTX ISA, griddepcontrol): nothing before sm_90, where kernels follow one another
// whole.
#pragma once

namespace pinion::cuda::ptx {

// Until the kernels that this one depends on have ended and their writes can be seen.
__device__ inline void wait_dependencies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start (its wait still waits for the end of this one). Early is good: its blocks
// take their places and request their weights while this kernel drains.
__device__ inline void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace pinion::cuda::ptx
