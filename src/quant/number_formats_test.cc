#include "quant/number_formats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace pinion {
namespace {

// The definition, in double: sign, exponent with bias 7, three mantissa bits.
double e4m3_by_definition(int code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const double a = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 0x80 ? -a : a;
}

TEST(E4m3, All256CodesDecodeByDefinitionAndEncodeBack) {
  for (int code = 0; code < 256; ++code) {
    const float v = e4m3_to_f32(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(v)) << code;
      EXPECT_EQ(f32_to_e4m3(v) & 0x7f, 0x7f);
      continue;
    }
    EXPECT_EQ(v, e4m3_by_definition(code)) << code;
    EXPECT_EQ(std::signbit(v), code >= 128) << code;
    EXPECT_EQ(f32_to_e4m3(v), code);
  }
}

TEST(E4m3, RoundsToTheNearestAndTiesToEven) {
  for (int code = 0; code < 0x7e; ++code) {  // between each code and the next: the midpoint, and just beside it
    const float a = e4m3_to_f32(static_cast<uint8_t>(code)), b = e4m3_to_f32(static_cast<uint8_t>(code + 1));
    const float middle = (a + b) / 2;
    EXPECT_EQ(f32_to_e4m3(middle), code % 2 ? code + 1 : code) << code;
    EXPECT_EQ(f32_to_e4m3(std::nextafter(middle, 0.0f)), code) << code;
    EXPECT_EQ(f32_to_e4m3(std::nextafter(middle, 1e9f)), code + 1) << code;
    EXPECT_EQ(f32_to_e4m3(-middle), 0x80 | (code % 2 ? code + 1 : code)) << code;
  }
  EXPECT_EQ(f32_to_e4m3(449), 0x7e);
  EXPECT_EQ(f32_to_e4m3(500), 0x7e);
  EXPECT_EQ(f32_to_e4m3(-std::numeric_limits<float>::infinity()), 0xfe);
  EXPECT_EQ(f32_to_e4m3(3.14159f), 0x45);
  EXPECT_EQ(f32_to_e4m3(0.1f), 0x1d);
  EXPECT_EQ(f32_to_e4m3(-0.3f), 0xaa);
}

TEST(E8m0, IsAPowerOfTwo) {
  for (int code = 0; code < 255; ++code) {
    EXPECT_EQ(std::log2(static_cast<double>(e8m0_to_f32(static_cast<uint8_t>(code)))), code - 127);
  }
  EXPECT_TRUE(std::isnan(e8m0_to_f32(255)));
}

TEST(E2m1, AllCodesAndTies) {
  for (int code = 0; code < 16; ++code) {
    const float v = e2m1_to_f32(static_cast<uint8_t>(code));
    EXPECT_EQ(f32_to_e2m1(v), code);
    const int m = code & 7;  // by definition: exponent with bias 1, one mantissa bit
    EXPECT_EQ(std::fabs(v), m < 2 ? m * 0.5f : std::ldexp(2.0f + static_cast<float>(m & 1), (m >> 1) - 2)) << code;
  }
  for (int code = 0; code < 7; ++code) {
    const float middle = (e2m1_to_f32(static_cast<uint8_t>(code)) + e2m1_to_f32(static_cast<uint8_t>(code + 1))) / 2;
    EXPECT_EQ(f32_to_e2m1(middle), code % 2 ? code + 1 : code) << code;
    EXPECT_EQ(f32_to_e2m1(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(f32_to_e2m1(std::nextafter(middle, 9.0f)), code + 1);
  }
  EXPECT_EQ(f32_to_e2m1(7), 7);
  EXPECT_EQ(f32_to_e2m1(-0.75f), 10);
}

}  // namespace
}  // namespace pinion
