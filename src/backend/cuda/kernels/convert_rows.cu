// Bits in, bits out: an engine that a GPU packed is that of the CPU byte by byte, so what hardware conversions do to
// NaNs is done by hand as tensor/convert.h does. Memory-bound: a thread takes eight elements in 16-byte accesses where
// the width allows, one otherwise.
#include <cuda_fp16.h>

#include "backend/cuda/kernels/convert_rows.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kThreads = 256;

template <DType Type>
struct Bits {
  using type = uint16_t;
};
template <>
struct Bits<DType::f32> {
  using type = uint32_t;
};

template <DType From>
__device__ inline uint32_t to_f32_bits(typename Bits<From>::type v) {
  if constexpr (From == DType::f32) {
    return v;
  } else if constexpr (From == DType::bf16) {
    return static_cast<uint32_t>(v) << 16;
  } else {
    const uint32_t sign = static_cast<uint32_t>(v & 0x8000) << 16, mantissa = v & 0x3ff;
    if ((v & 0x7c00) == 0x7c00) return sign | 0x7f800000u | (mantissa << 13);
    return __float_as_uint(__half2float(__ushort_as_half(v)));
  }
}

template <DType To>
__device__ inline typename Bits<To>::type from_f32_bits(uint32_t u) {
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  if constexpr (To == DType::f32) {
    return u;
  } else if constexpr (To == DType::bf16) {
    if (nan) return static_cast<uint16_t>((u >> 16) | 0x40);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
  } else {
    if (nan) return static_cast<uint16_t>(((u >> 16) & 0x8000) | 0x7e00);
    return __half_as_ushort(__float2half_rn(__uint_as_float(u)));
  }
}

template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Elements {
  T at[N];
};

template <DType From, DType To, int N>
__global__ void convert_kernel(const __grid_constant__ RowConversion p) {
  using In = typename Bits<From>::type;
  using Out = typename Bits<To>::type;
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  if (i >= p.rows * p.cols) return;
  const int64_t row = i / p.cols, column = i - row * p.cols;
  const auto in = *reinterpret_cast<const Elements<In, N>*>(reinterpret_cast<const In*>(p.from) + i);
  Elements<Out, N> out;
  bool overflow = false;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if constexpr (From == To) {
      out.at[k] = in.at[k];  // not through f32, which changes NaNs
    } else {
      out.at[k] = from_f32_bits<To>(to_f32_bits<From>(in.at[k]));
    }
    if constexpr (To == DType::f16) overflow |= (out.at[k] & 0x7fff) == 0x7c00;
  }
  *reinterpret_cast<Elements<Out, N>*>(reinterpret_cast<Out*>(p.to) + row * p.step * p.cols + column) = out;
  if (overflow) *p.overflow = 1;
}

template <DType From, DType To>
void convert(const RowConversion& p, Stream& stream) {
  // Not dependent: what comes before and after is copies.
  if (p.cols % 8 == 0) {
    launch<convert_kernel<From, To, 8>>(
        {.grid = blocks_for(p.rows * p.cols / 8, kThreads), .block = kThreads, .dependent = false}, p, stream);
  } else {
    launch<convert_kernel<From, To, 1>>(
        {.grid = blocks_for(p.rows * p.cols, kThreads), .block = kThreads, .dependent = false}, p, stream);
  }
}

template <DType From>
void convert_from(const RowConversion& p, Stream& stream) {
  switch (p.to_type) {
    case DType::f32:
      return convert<From, DType::f32>(p, stream);
    case DType::f16:
      return convert<From, DType::f16>(p, stream);
    case DType::bf16:
      return convert<From, DType::bf16>(p, stream);
    default:
      check(false, "rows are converted to float types");
  }
}

}  // namespace

void convert_rows(const RowConversion& p, Stream& stream) {
  switch (p.from_type) {
    case DType::f32:
      return convert_from<DType::f32>(p, stream);
    case DType::f16:
      return convert_from<DType::f16>(p, stream);
    case DType::bf16:
      return convert_from<DType::bf16>(p, stream);
    default:
      check(false, "rows are converted from float types");
  }
}

}  // namespace pinion::cuda
