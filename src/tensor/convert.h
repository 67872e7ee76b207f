// Scalar conversions between the float types, round to nearest even; NaN stays NaN. Kernels have their own SIMD forms.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "tensor/tensor.h"

namespace pinion {

inline float bf16_to_f32(uint16_t v) {
  return std::bit_cast<float>(static_cast<uint32_t>(v) << 16);
}

inline uint16_t f32_to_bf16(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline float f16_to_f32(uint16_t v) {
  const uint32_t sign = static_cast<uint32_t>(v & 0x8000) << 16;
  const uint32_t exponent = (v >> 10) & 31, mantissa = v & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    const float f = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -f : f;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

inline uint16_t f32_to_f16(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v), sign = (u >> 16) & 0x8000, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00);
  if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // rounds past 65504
  if (a < 0x38800000u) {                                              // subnormal: scale so that the unit is 2^-24
    const float scaled = std::bit_cast<float>(a) * 16777216.0f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(scaled)));
  }
  return static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1)) >> 13));
}

// Reads or writes element i of a float tensor (f32, f16 or bf16) as f32.
inline float load_f32(const void* p, DType type, int64_t i) {
  switch (type) {
    case DType::f32:
      return static_cast<const float*>(p)[i];
    case DType::f16:
      return f16_to_f32(static_cast<const uint16_t*>(p)[i]);
    case DType::bf16:
      return bf16_to_f32(static_cast<const uint16_t*>(p)[i]);
    default:
      check(false, "load_f32 takes float tensors");
      return 0;
  }
}

inline void store_f32(void* p, DType type, int64_t i, float v) {
  switch (type) {
    case DType::f32:
      static_cast<float*>(p)[i] = v;
      return;
    case DType::f16:
      static_cast<uint16_t*>(p)[i] = f32_to_f16(v);
      return;
    case DType::bf16:
      static_cast<uint16_t*>(p)[i] = f32_to_bf16(v);
      return;
    default:
      check(false, "store_f32 takes float tensors");
  }
}

// Converts n floats from one type to another; neither side need be aligned, as mapped files are not.
inline void convert_floats(const std::byte* from, DType from_type, std::byte* to, DType to_type, int64_t n) {
  if (from_type == to_type) {
    std::memcpy(to, from, n * byte_size(to_type));
    return;
  }
  constexpr int64_t kRun = 256;
  alignas(8) std::byte source[kRun * 4], target[kRun * 4];
  for (int64_t i = 0; i < n; i += kRun) {
    const int64_t m = std::min(kRun, n - i);
    std::memcpy(source, from + i * byte_size(from_type), m * byte_size(from_type));
    for (int64_t k = 0; k < m; ++k) store_f32(target, to_type, k, load_f32(source, from_type, k));
    std::memcpy(to + i * byte_size(to_type), target, m * byte_size(to_type));
  }
}

}  // namespace pinion
