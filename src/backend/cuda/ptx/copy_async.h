// Asynchronous copies of 16 bytes from global to shared memory (PTX ISA, cp.async; since sm_80). Copies are counted in
// groups of the issuing thread: commit closes a group, wait<N> waits until at most N groups are still under way.
#pragma once

#include <cstdint>

namespace pinion::cuda::ptx {

// Copies `bytes` (0 … 16) and fills the rest of the 16 with zeros; past L1. With 0 bytes `from` is not read.
__device__ inline void copy_async_16(uint32_t shared_to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_to), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace pinion::cuda::ptx
