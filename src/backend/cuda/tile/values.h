// Values of any float type as f32 in registers, N at a time: N = 8 is one 16-byte access of a 2-byte type. The type is
// a run-time number that all threads share: memory-bound kernels then exist once, not once per combination of types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace pinion::cuda {

// A dense tensor in a kernel's parameters.
struct Values {
  void* data = nullptr;
  DType dtype = DType::f32;
};
struct ConstValues {
  const void* data = nullptr;
  DType dtype = DType::f32;
};

#ifdef __CUDACC__  // a file for the host compiler sees the parameters alone
namespace detail {

template <int N, class T>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

}  // namespace detail

// Elements i … i + N - 1; i is a multiple of N, and the tensor 16-byte aligned.
template <int N>
__device__ inline void load(const ConstValues& x, int64_t i, float (&out)[N]) {
  static_assert(N == 1 || N == 2 || N == 4 || N == 8);
  if (x.dtype == DType::f32) {
    constexpr int kStep = N < 4 ? N : 4;
#pragma unroll
    for (int k = 0; k < N; k += kStep) {
      const auto p = *reinterpret_cast<const detail::Pack<kStep, float>*>(static_cast<const float*>(x.data) + i + k);
#pragma unroll
      for (int j = 0; j < kStep; ++j) out[k + j] = p.v[j];
    }
  } else if (x.dtype == DType::bf16) {
    const auto p = *reinterpret_cast<const detail::Pack<N, uint16_t>*>(static_cast<const uint16_t*>(x.data) + i);
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = __uint_as_float(static_cast<uint32_t>(p.v[k]) << 16);
  } else {
    const auto p = *reinterpret_cast<const detail::Pack<N, uint16_t>*>(static_cast<const uint16_t*>(x.data) + i);
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = __half2float(__ushort_as_half(p.v[k]));
  }
}

template <int N>
__device__ inline void load(const Values& x, int64_t i, float (&out)[N]) {
  load<N>(ConstValues{x.data, x.dtype}, i, out);
}

// Rounds to nearest even.
template <int N>
__device__ inline void store(const Values& y, int64_t i, const float (&in)[N]) {
  static_assert(N == 1 || N == 2 || N == 4 || N == 8);
  if (y.dtype == DType::f32) {
    constexpr int kStep = N < 4 ? N : 4;
#pragma unroll
    for (int k = 0; k < N; k += kStep) {
      detail::Pack<kStep, float> p;
#pragma unroll
      for (int j = 0; j < kStep; ++j) p.v[j] = in[k + j];
      *reinterpret_cast<detail::Pack<kStep, float>*>(static_cast<float*>(y.data) + i + k) = p;
    }
    return;
  }
  detail::Pack<N, uint16_t> p;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    p.v[k] = y.dtype == DType::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(in[k]))
                                    : __half_as_ushort(__float2half_rn(in[k]));
  }
  *reinterpret_cast<detail::Pack<N, uint16_t>*>(static_cast<uint16_t*>(y.data) + i) = p;
}

__device__ inline float load(const ConstValues& x, int64_t i) {
  float v[1];
  load<1>(x, i, v);
  return v[0];
}
__device__ inline void store(const Values& y, int64_t i, float value) {
  const float v[1] = {value};
  store<1>(y, i, v);
}
#endif

}  // namespace pinion::cuda
