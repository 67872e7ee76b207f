#include "checkpoint/dummy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "base/check.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

std::vector<std::byte> make(std::string_view name, DType type, size_t n, int64_t row_width, uint64_t first = 0) {
  std::vector<std::byte> out(n * byte_size(type));
  fill_dummy(name, type, out, row_width, first);
  return out;
}

struct Moments {
  double mean = 0, sigma = 0, min = 1e9, max = -1e9;
};

Moments moments(std::string_view name, int64_t row_width, DType type = DType::f32, size_t n = 1 << 18) {
  const auto bytes = make(name, type, n, row_width);
  Moments m;
  double sum = 0, squares = 0;
  for (size_t i = 0; i < n; ++i) {
    const double v = load_f32(bytes.data(), type, static_cast<int64_t>(i));
    sum += v;
    squares += v * v;
    m.min = std::min(m.min, v);
    m.max = std::max(m.max, v);
  }
  m.mean = sum / static_cast<double>(n);
  m.sigma = std::sqrt(squares / static_cast<double>(n) - m.mean * m.mean);
  return m;
}

TEST(Dummy, ScalesFollowTheName) {
  for (DType type : {DType::f32, DType::f16, DType::bf16}) {
    const Moments matrix = moments("model.layers.0.mlp.down_proj.weight", 4096, type);
    EXPECT_NEAR(matrix.mean, 0, 1e-4);
    EXPECT_NEAR(matrix.sigma, 1 / 64.0, 1e-4);
    for (const char* name : {"model.norm.weight", "model.layers.3.input_layernorm.weight", "h.0.ln_1.weight",
                             "model.layers.0.self_attn.q_norm.weight", "transformer.ln_f.weight"}) {
      const Moments norm = moments(name, 64, type, 1 << 14);
      EXPECT_NEAR(norm.mean, 1, 0.005) << name;
      EXPECT_GE(norm.min, 0.89) << name;
      EXPECT_LE(norm.max, 1.11) << name;
    }
    const Moments bias = moments("model.layers.0.input_layernorm.bias", 64, type);
    EXPECT_NEAR(bias.max, 0.02, 1e-4);
    EXPECT_NEAR(bias.min, -0.02, 1e-4);
    EXPECT_NEAR(moments("model.embed_tokens.weight", 4096, type).sigma, 0.02, 2e-4);
    EXPECT_NEAR(moments("wte.weight", 4096, type).sigma, 0.02, 2e-4);
    EXPECT_NEAR(moments("model.layers.0.mlp.experts.gate_up_proj", 100, type).sigma, 0.1, 1e-3);
  }
}

TEST(Dummy, ASliceEqualsTheWhole) {
  for (DType type : {DType::f32, DType::f16, DType::bf16}) {
    const size_t element = byte_size(type), n = 10'000;
    const auto whole = make("a.weight", type, n, 64);
    for (const auto& [first, count] : std::vector<std::pair<size_t, size_t>>{
             {0, 1}, {1, 1}, {1, 2}, {2, 3}, {7, 5000}, {2047, 4099}, {2048, 2048}, {9999, 1}}) {
      const auto slice = make("a.weight", type, count, 64, first);
      EXPECT_EQ(std::memcmp(slice.data(), whole.data() + first * element, count * element), 0) << first << " " << count;
    }
    // Across the place where the pair number passes 32 bits.
    const uint64_t wrap = uint64_t{1} << 33;
    const auto around = make("a.weight", type, 4000, 64, wrap - 1001);
    const auto after = make("a.weight", type, 2999, 64, wrap);
    EXPECT_EQ(std::memcmp(around.data() + 1001 * element, after.data(), 2999 * element), 0);
    EXPECT_NE(std::memcmp(after.data(), whole.data(), 2999 * element), 0);
  }
}

TEST(Dummy, UnalignedOutputIsFilledExactly) {
  std::vector<std::byte> bytes(201, std::byte{0x5a});
  fill_dummy("a.weight", DType::bf16, std::span(bytes).subspan(1, 198), 64, 3);
  const auto expected = make("a.weight", DType::bf16, 99, 64, 3);
  EXPECT_EQ(std::memcmp(bytes.data() + 1, expected.data(), 198), 0);
  EXPECT_EQ(bytes[0], std::byte{0x5a});
  EXPECT_EQ(bytes[199], std::byte{0x5a});
}

TEST(Dummy, TypesAgreeUpToRounding) {
  const size_t n = 1 << 17;
  const auto f32 = make("a.weight", DType::f32, n, 300), f16 = make("a.weight", DType::f16, n, 300),
             bf16 = make("a.weight", DType::bf16, n, 300);
  for (size_t i = 0; i < n; ++i) {
    const auto at = static_cast<int64_t>(i);
    float v;
    std::memcpy(&v, f32.data() + i * 4, 4);
    ASSERT_EQ(load_f32(f16.data(), DType::f16, at), f16_to_f32(f32_to_f16(v))) << v;  // subnormals, too
    ASSERT_EQ(load_f32(bf16.data(), DType::bf16, at), bf16_to_f32(f32_to_bf16(v))) << v;
  }
}

TEST(Dummy, NamesDifferAndPagesDoNotRepeat) {
  EXPECT_NE(make("layers.0.weight", DType::bf16, 64, 64), make("layers.1.weight", DType::bf16, 64, 64));
  const auto bytes = make("a.weight", DType::bf16, 1 << 20, 64);
  std::set<std::string> pages;
  for (size_t at = 0; at < bytes.size(); at += 4096) {
    pages.emplace(reinterpret_cast<const char*>(bytes.data()) + at, 4096);
  }
  EXPECT_EQ(pages.size(), bytes.size() / 4096);
  // Neighbours and columns do not correlate.
  const auto floats = make("a.weight", DType::f32, 1 << 18, 3);  // uniform of sigma 1/sqrt(3)
  for (size_t lag : {1, 2, 64, 4096}) {
    double sum = 0;
    const size_t n = (1 << 18) - lag;
    for (size_t i = 0; i < n; ++i) {
      sum += load_f32(floats.data(), DType::f32, static_cast<int64_t>(i)) *
             load_f32(floats.data(), DType::f32, static_cast<int64_t>(i + lag));
    }
    EXPECT_LT(std::abs(sum / static_cast<double>(n)), 0.004) << lag;  // 1/3 if equal; 6 sigma of chance
  }
}

// Frozen: engines and published figures of dummy models stay comparable between versions and machines.
TEST(Dummy, NumbersAreFrozen) {
  const auto f32 = make("model.layers.0.self_attn.q_proj.weight", DType::f32, 4, 4096, 12345);
  std::vector<float> v(4);
  std::memcpy(v.data(), f32.data(), 16);
  EXPECT_EQ(v, (std::vector<float>{0x1.6243eap-6f, 0x1.df7afap-8f, 0x1.150dcp-6f, -0x1.bb86dcp-7f}));
}

TEST(Dummy, OtherTypesAreOurOwnBug) {
  std::vector<std::byte> bytes(16);
  EXPECT_THROW(fill_dummy("a", DType::i32, bytes, 4), CheckFailure);
}

}  // namespace
}  // namespace pinion
