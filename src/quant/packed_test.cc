#include "quant/packed.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "quant/number_formats.h"

namespace pinion {
namespace {

struct Case {
  Scheme scheme;
  int64_t rows, cols;
  bool offsets = false, ordered = false;
};

QuantizedMatrix random_matrix(const Case& c, std::mt19937& random) {
  QuantizedMatrix m{.scheme = c.scheme, .rows = c.rows, .cols = c.cols};
  std::uniform_int_distribution<int> byte(0, 255);
  std::uniform_real_distribution<float> real(0.001f, 2);
  for (int64_t i = 0; i < c.rows * c.cols; ++i) {
    auto code = static_cast<uint8_t>(byte(random));
    if (c.scheme.code == CodeType::e2m1) code &= 15;
    if (c.scheme.code == CodeType::e4m3 && (code & 0x7f) == 0x7f) code = 0x80;
    if (c.scheme.code == CodeType::integer && c.scheme.bits == 4) code = static_cast<uint8_t>((code & 15) - 8);
    m.codes.push_back(code);
  }
  for (int64_t i = 0; i < m.scale_rows() * m.scale_cols(); ++i) {
    float s = real(random);
    if (c.scheme.code == CodeType::e2m1 && c.scheme.block_cols == 16) s = e4m3_to_f32(f32_to_e4m3(s));
    if (c.scheme.code == CodeType::e2m1 && c.scheme.block_cols == 32) s = std::ldexp(1.0f, byte(random) % 40 - 20);
    m.scales.push_back(s);
    if (c.scheme.zero_points) m.zeros.push_back(static_cast<int8_t>(byte(random) % 16 - 8));
  }
  if (c.scheme.code == CodeType::e2m1 && c.scheme.block_cols == 16) m.tensor_scale = real(random);
  for (int64_t k = 0; c.ordered && k < c.cols; ++k) {
    m.column_group.push_back(static_cast<int32_t>(k * 7 % c.cols / c.scheme.block_cols));
  }
  for (size_t i = 0; c.offsets && i < m.scales.size(); ++i) m.offsets.push_back(real(random));
  return m;
}

const Case kCases[] = {
    {{.code = CodeType::e4m3, .block_rows = 0, .block_cols = 0}, 5, 96},
    {{.code = CodeType::e4m3, .block_rows = 1, .block_cols = 0}, 7, 100},
    {{.code = CodeType::e4m3, .block_rows = 128, .block_cols = 128}, 200, 320},
    {{.bits = 8}, 3, 33},
    {{.bits = 8, .block_cols = 32, .zero_points = true}, 4, 128},
    {{.bits = 4, .block_cols = 128}, 6, 384},
    {{.bits = 4, .block_cols = 32, .zero_points = true}, 9, 64},
    {{.bits = 4, .block_cols = 0}, 3, 50},
    {{.code = CodeType::e2m1, .bits = 4, .block_cols = 16}, 4, 48},
    {{.code = CodeType::e2m1, .bits = 4, .block_cols = 32}, 4, 96},
    {{.code = CodeType::e2m1, .bits = 4, .block_cols = 32}, 4, 32},
    {{.bits = 4, .block_cols = 32, .zero_points = true}, 3, 256, true},
    {{.bits = 8, .block_cols = 32}, 3, 256, true},
    {{.bits = 8, .block_cols = 16}, 3, 256},
    {{.bits = 4, .block_cols = 32, .zero_points = true}, 3, 128, false, true},
    {{.bits = 8, .block_cols = 64}, 3, 256, false, true},
};

TEST(Packed, UnpackGivesBackEveryBitAndBothDecodesAgree) {
  std::mt19937 random(std::random_device{}());
  for (const Case& c : kCases) {
    SCOPED_TRACE(str(c.scheme));
    const QuantizedMatrix m = random_matrix(c, random);
    ASSERT_TRUE(validate(m, "test").ok()) << validate(m, "test").error().message;
    const PackedPlan plan = plan_packed(m);
    ASSERT_EQ(plan.why_not, "");
    const std::vector<std::byte> bytes = pack(m);
    const QuantizedMatrix back = unpack(plan.layout, bytes);
    EXPECT_EQ(back.codes, m.codes);
    EXPECT_EQ(back.tensor_scale, m.tensor_scale);
    EXPECT_EQ(back.column_group, m.column_group);
    for (int64_t n = 0; n < m.rows; ++n) {
      for (int64_t k = 0; k < m.cols; ++k) {
        ASSERT_EQ(back.scales[back.scale_index(n, k)], m.scales[m.scale_index(n, k)]) << n << " " << k;
        if (!m.zeros.empty()) {
          ASSERT_EQ(back.zeros[back.scale_index(n, k)], m.zeros[m.scale_index(n, k)]);
        }
        if (c.offsets) {
          ASSERT_EQ(back.offsets[back.scale_index(n, k)], m.offsets[m.scale_index(n, k)]);
        }
      }
    }
    const std::vector<float> want = decode(m);
    std::vector<float> got(want.size());
    decode_packed(plan.layout, bytes, 0, m.rows, got);
    EXPECT_EQ(got, want);
    EXPECT_EQ(decode(back), want);
  }
}

TEST(Packed, PartsStackAndInterleave) {
  std::mt19937 random(std::random_device{}());
  for (const Case& c : kCases) {
    SCOPED_TRACE(str(c.scheme));
    const QuantizedMatrix a = random_matrix(c, random), b = random_matrix(c, random);
    RowLayout layout = plan_packed(a).layout;
    layout.rows = 2 * c.rows;
    std::vector<std::byte> bytes(layout.bytes());
    pack_rows(a, layout, 0, 2, bytes);
    pack_rows(b, layout, 1, 2, bytes);
    std::vector<float> row(c.cols);
    const std::vector<float> want_a = decode(a), want_b = decode(b);
    for (int64_t n = 0; n < layout.rows; ++n) {
      decode_packed(layout, bytes, n, n + 1, row);
      const auto& want = n % 2 ? want_b : want_a;
      EXPECT_TRUE(std::equal(row.begin(), row.end(), want.begin() + n / 2 * c.cols)) << n;
    }
  }
}

TEST(Packed, NibblesOfAUnitLieInHalves) {
  QuantizedMatrix m{.scheme = {.bits = 4, .block_cols = 32}, .rows = 1, .cols = 32, .scales = {1}};
  for (int i = 0; i < 32; ++i) m.codes.push_back(static_cast<uint8_t>(i % 16 - 8));
  const std::vector<std::byte> bytes = pack(m);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(static_cast<int>(bytes[i]), i | i << 4);
}

TEST(Packed, SaysWhyThereIsNoLayout) {
  QuantizedMatrix m{.scheme = {.bits = 4, .block_cols = 32}, .rows = 1, .cols = 64, .scales = {1, 1}};
  m.codes.resize(64);
  m.column_group.resize(64);
  EXPECT_NE(plan_packed(m).why_not.find("act-order"), std::string::npos);
  m.column_group.clear();
  m.input_multiplier.assign(64, 2);
  EXPECT_NE(plan_packed(m).why_not.find("multipliers"), std::string::npos);
  EXPECT_NE(plan_packed(Scheme{.bits = 3, .block_cols = 32}, 4, 64).why_not, "");
  EXPECT_NE(plan_packed(Scheme{.bits = 4, .block_cols = 24}, 4, 48).why_not, "");
}

TEST(QuantizedMatrix, BadPartsAreRefused) {
  QuantizedMatrix good{.scheme = {.bits = 4, .block_cols = 2, .zero_points = true},
                       .rows = 1,
                       .cols = 4,
                       .codes = {0, 1, 2, 0xf8},
                       .scales = {1, 0},
                       .zeros = {0, -8}};
  EXPECT_TRUE(validate(good, "w").ok());
  const auto message = [&](auto&& change) {
    QuantizedMatrix m = good;
    change(m);
    const Status s = validate(m, "the tensor");
    return s.ok() ? std::string("accepted") : s.error().message;
  };
  EXPECT_NE(message([](auto& m) { m.scales[1] = NAN; }).find("the scale 1 is nan"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.scales[0] = -1; }).find("the scale 0"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.scales[0] = INFINITY; }).find("inf"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.zeros.pop_back(); }).find("fit each other"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.zeros[0] = 8; }).find("4 bits"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.codes[0] = 8; }).find("4 bits"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.column_group = {0, 0, 0, 2}; }).find("group"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.scheme.input = InputQuant::int8_static; }).find("the input scale is 0"),
            std::string::npos);
  EXPECT_NE(message([](auto& m) { m.input_scale = NAN; }).find("the input scale is nan"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.offsets = {0, INFINITY}; }).find("offset"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.tensor_scale = 0; }).find("tensor's scale"), std::string::npos);
  EXPECT_NE(message([](auto& m) { m.input_multiplier = {1, 1, NAN, 1}; }).find("multiplier"), std::string::npos);
}

}  // namespace
}  // namespace pinion
