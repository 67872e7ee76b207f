// Asynchronous bulk copies from global to shared memory (PTX ISA "cp.async.bulk"): one thread asks for kilobytes, a
// barrier counts the bytes that have arrived. Needs compute capability 9. Sizes and addresses are multiples of 16
// bytes; a swizzled tensor copy's destination is 1024-byte aligned.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace pinion::cuda::ptx {

// L2 cache policies, as createpolicy.fractional encodes them (also in CUTLASS's TMA::CacheHintSm90).
enum class CacheHint : uint64_t {
  normal = 0x1000000000000000,
  evict_first = 0x12F0000000000000,  // read once: weights
  evict_last = 0x14F0000000000000    // read by every thread block: activations
};

__device__ inline void bulk_copy(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier,
                                 CacheHint hint) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(static_cast<uint64_t>(hint))
      : "memory");
}

// A box of a two-dimensional tensor at element (x, y), x along its rows. What lies outside of the tensor arrives as
// zeros and is counted.
__device__ inline void tensor_copy(uint32_t shared, const CUtensorMap* map, int32_t x, int32_t y, uint32_t barrier,
                                   CacheHint hint) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3}], "
      "[%4], %5;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "l"(static_cast<uint64_t>(hint))
      : "memory");
}

// The same into every block of the cluster whose bit is set in `blocks`, at the same offset, counted by each one's own
// barrier at the same offset.
__device__ inline void tensor_copy_multicast(uint32_t shared, const CUtensorMap* map, int32_t x, int32_t y,
                                             uint32_t barrier, uint16_t blocks, CacheHint hint) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks), "l"(static_cast<uint64_t>(hint))
      : "memory");
}

// A box of a three-dimensional tensor at element (x, y, z).
__device__ inline void tensor_copy_3d(uint32_t shared, const CUtensorMap* map, int32_t x, int32_t y, int32_t z,
                                      uint32_t barrier, CacheHint hint) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3, %4}], [%5], %6;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "l"(static_cast<uint64_t>(hint))
      : "memory");
}

// A box of a four-dimensional tensor at element (x, y, z, w).
__device__ inline void tensor_copy_4d(uint32_t shared, const CUtensorMap* map, int32_t x, int32_t y, int32_t z,
                                      int32_t w, uint32_t barrier, CacheHint hint) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
      "%3, %4, %5}], [%6], %7;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier), "l"(static_cast<uint64_t>(hint))
      : "memory");
}

__device__ inline void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace pinion::cuda::ptx
