// The narrow number formats of quantised weights, one scalar conversion each way. OCP 8-bit Floating Point (OFP8) 1.0
// and OCP Microscaling Formats (MX) 1.0; all round to nearest, ties to even, and saturate.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace pinion {

// ---- E4M3 (the "FN" form: no infinities, NaN is 0x7f and 0xff, the largest number is 448) ----

inline constexpr float kE4m3Max = 448;

inline float e4m3_to_f32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24, magnitude = code & 0x7f;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8) {  // subnormal: multiples of 2^-9
    const float f = static_cast<float>(magnitude) * 0x1p-9f;
    return sign ? -f : f;
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
}

inline uint8_t f32_to_e4m3(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v), a = u & 0x7fffffffu;
  const uint32_t sign = (u >> 24) & 0x80;
  if (a > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7f);
  if (a >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7e);  // 448 and more
  if (a < 0x3c800000u) {                                           // below 2^-6
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::nearbyint(std::bit_cast<float>(a) * 512.0f)));
  }
  return static_cast<uint8_t>(sign | ((a - (120u << 23) + 0x7ffffu + ((a >> 20) & 1)) >> 20));
}

// ---- E8M0: a power of two, 2^(code - 127); 255 is NaN ----

inline float e8m0_to_f32(uint8_t code) {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::ldexp(1.0f, code - 127);
}

// ---- E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign ----

inline constexpr float kE2m1Max = 6;
inline constexpr std::array<float, 16> kE2m1Values{0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                                   -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

inline float e2m1_to_f32(uint8_t code) {
  return kE2m1Values[code & 15];
}

// NaN has no code; it becomes 0, and callers refuse it before.
inline uint8_t f32_to_e2m1(float v) {
  const float a = std::fabs(v);
  // Midpoints between neighbours; a tie goes to the even code, so every second bound belongs to the upper one.
  const int code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
  return static_cast<uint8_t>(code | (std::signbit(v) ? 8 : 0));
}

}  // namespace pinion
