// Warpgroup tensor-core products (PTX ISA "wgmma"; sm_90a): D[64, N] += A[64, 16] B[N, 16]^T with both operands in
// shared memory, K-major, swizzled in 128-byte rows as tensor copies write them. Accumulators as mma.sync's: in warp w
// of the group, lane 4 g + t, element 4 j + {0, 1} is row 16 w + g, columns 8 j + 2 t + {0, 1}; 4 j + {2, 3} is row 16
// w + g + 8.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace pinion::cuda::ptx {

// Descriptor of a K-major operand: rows of 128 bytes, swizzled, in groups of eight rows (1024 bytes) one after another.
// `shared` is 1024-byte aligned, plus 32 bytes for each step of 16 two-byte elements along k.
__device__ inline uint64_t wgmma_operand(uint32_t shared) {
  constexpr uint64_t kGroupStride = 1024 >> 4, kSwizzle128 = 1;
  return static_cast<uint64_t>((shared & 0x3ffff) >> 4) | (1ull << 16) | (kGroupStride << 32) | (kSwizzle128 << 62);
}

__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most N committed groups are under way.
template <int N>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Accumulators d as operands of asm, in steps of 4 to 32 registers, and as they are called in its text.
#define PINION_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PINION_D8(i) PINION_D4(i), PINION_D4(i + 4)
#define PINION_D16(i) PINION_D8(i), PINION_D8(i + 8)
#define PINION_D32(i) PINION_D16(i), PINION_D16(i + 16)
#define PINION_R4 "%0, %1, %2, %3"
#define PINION_R8 PINION_R4 ", %4, %5, %6, %7"
#define PINION_R16 PINION_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define PINION_R32 PINION_R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PINION_R64                                                                          \
  PINION_R32                                                                                \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PINION_R96                                                                          \
  PINION_R64                                                                                \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, " \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PINION_R112                                                                          \
  PINION_R96                                                                                 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, " \
  "%111"
#define PINION_R128                                                                        \
  PINION_R112                                                                              \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
  "%126, %127"

// The instruction for N columns: `text` names d's N / 2 registers; %a, %b and %c are the operands behind them.
#define PINION_WGMMA_OF(type, n, text, a, b, c, ...)                                                             \
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %" #c ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type \
               "." type " {" text "}, %" #a ", %" #b ", p, 1, 1, 0, 0; }"                                        \
               : __VA_ARGS__                                                                                     \
               : "l"(x), "l"(y), "r"(static_cast<uint32_t>(accumulate)))
#define PINION_WGMMA(n, ...)                        \
  if constexpr (std::is_same_v<T, __nv_bfloat16>) { \
    PINION_WGMMA_OF("bf16", n, __VA_ARGS__);        \
  } else {                                          \
    PINION_WGMMA_OF("f16", n, __VA_ARGS__);         \
  }

// d += x y^T, or d = x y^T without `accumulate`.
template <class T, int N>
__device__ inline void wgmma_64xNx16(float (&d)[N / 2], uint64_t x, uint64_t y, bool accumulate = true) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128 || N == 192 || N == 224 || N == 256);
  if constexpr (N == 8) {
    PINION_WGMMA(8, PINION_R4, 4, 5, 6, PINION_D4(0))
  } else if constexpr (N == 16) {
    PINION_WGMMA(16, PINION_R8, 8, 9, 10, PINION_D8(0))
  } else if constexpr (N == 32) {
    PINION_WGMMA(32, PINION_R16, 16, 17, 18, PINION_D16(0))
  } else if constexpr (N == 64) {
    PINION_WGMMA(64, PINION_R32, 32, 33, 34, PINION_D32(0))
  } else if constexpr (N == 128) {
    PINION_WGMMA(128, PINION_R64, 64, 65, 66, PINION_D32(0), PINION_D32(32))
  } else if constexpr (N == 192) {
    PINION_WGMMA(192, PINION_R96, 96, 97, 98, PINION_D32(0), PINION_D32(32), PINION_D32(64))
  } else if constexpr (N == 224) {
    PINION_WGMMA(224, PINION_R112, 112, 113, 114, PINION_D32(0), PINION_D32(32), PINION_D32(64), PINION_D16(96))
  } else if constexpr (N == 256) {
    PINION_WGMMA(256, PINION_R128, 128, 129, 130, PINION_D32(0), PINION_D32(32), PINION_D32(64), PINION_D32(96))
  }
}

#undef PINION_WGMMA
#undef PINION_WGMMA_OF
#undef PINION_R4
#undef PINION_R8
#undef PINION_R16
#undef PINION_R32
#undef PINION_R64
#undef PINION_R96
#undef PINION_R112
#undef PINION_R128
#undef PINION_D4
#undef PINION_D8
#undef PINION_D16
#undef PINION_D32

}  // namespace pinion::cuda::ptx
