// Copies of 16 bytes from global to shared memory that pass by the registers (PTX ISA "cp.async"); compute
// capability 8.
#pragma once

#include <cstdint>

namespace pinion::cuda::ptx {

// Copies 16 bytes, or writes 16 zero bytes where `valid` is false (global is then not read, but must be a valid
// address).
__device__ inline void cp_async16(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most N of this thread's committed groups are under way.
template <int N>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace pinion::cuda::ptx
