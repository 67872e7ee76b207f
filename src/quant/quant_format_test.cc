#include "quant/quant_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "quant/formats/int4/awq.h"
#include "quant/formats/int4/int4.h"
#include "quant/formats/int8/smoothquant.h"
#include "quant/formats/kv_cache/kv_cache.h"
#include "quant/formats/mxfp4/mxfp4.h"
#include "quant/formats/nvfp4/nvfp4.h"
#include "quant/number_formats.h"
#include "quant/packed.h"

namespace pinion {
namespace {

std::mt19937& random_numbers() {
  static std::mt19937 generator(std::random_device{}());
  return generator;
}

std::vector<float> normal(int64_t n, float deviation = 1) {
  std::normal_distribution<float> d(0, deviation);
  std::vector<float> out(n);
  for (float& v : out) v = d(random_numbers());
  return out;
}

// Inputs as in a transformer: correlated, and a few columns far larger than the others.
std::vector<float> inputs(int64_t tokens, int64_t cols) {
  const std::vector<float> mix = normal(cols * 8), base = normal(tokens * 8);
  std::vector<float> x = normal(tokens * cols, 0.3f);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < cols; ++k) {
      for (int64_t j = 0; j < 8; ++j) x[t * cols + k] += base[t * 8 + j] * mix[k * 8 + j];
      if (k % 37 == 5) x[t * cols + k] *= 20;
    }
  }
  return x;
}

double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(got[i] - want[i], 2.0);
    size += std::pow(want[i], 2.0);
  }
  return std::sqrt(error / size);
}

// Of x W^T.
double output_error(const std::vector<float>& got, const std::vector<float>& want, const std::vector<float>& x,
                    int64_t cols) {
  const int64_t rows = std::ssize(want) / cols, tokens = std::ssize(x) / cols;
  double error = 0, size = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t n = 0; n < rows; ++n) {
      double e = 0, s = 0;
      for (int64_t k = 0; k < cols; ++k) {
        e += static_cast<double>(got[n * cols + k] - want[n * cols + k]) * x[t * cols + k];
        s += static_cast<double>(want[n * cols + k]) * x[t * cols + k];
      }
      error += e * e;
      size += s * s;
    }
  }
  return std::sqrt(error / size);
}

const QuantFormat& format(std::string_view name) {
  return **find_quant_format(name);
}

struct Bound {
  std::string_view name;
  EncodeOptions options;
  double error;  // relative, of Gaussian weights: what the step sizes give, and 10 % more
};

TEST(QuantFormat, DecodedWeightsAreWithinTheFormatsError) {
  constexpr int64_t kRows = 48, kCols = 384;
  const std::vector<float> w = normal(kRows * kCols, 0.02f), x = inputs(64, kCols);
  const Calibration calibration{.inputs = {x, 64, kCols}, .absmax = 50};
  const Bound bounds[] = {
      {"fp8", {.block_rows = 0, .block_cols = 0}, 0.030},
      {"fp8", {.block_rows = 1, .block_cols = 0, .input = InputQuant::e4m3_static}, 0.030},
      {"fp8", {.block_rows = 128, .block_cols = 128}, 0.030},
      {"int8_wo", {}, 0.0095},
      {"int4_wo", {.group = 32, .zero_points = true}, 0.094},
      {"int4_wo", {.group = 64, .zero_points = true}, 0.105},
      {"int4_wo", {.group = 128, .zero_points = true}, 0.118},
      {"int4_wo", {.group = 128}, 0.130},
      {"int4_wo", {.group = 0}, 0.155},
      {"nvfp4", {}, 0.105},
      {"mxfp4", {}, 0.13},
  };
  for (const Bound& b : bounds) {
    SCOPED_TRACE(b.name);
    auto m = format(b.name).encode({w, kRows, kCols}, b.options, &calibration);
    ASSERT_TRUE(m.ok()) << m.error().message;
    ASSERT_TRUE(validate(*m, "w").ok()) << validate(*m, "w").error().message;
    const double error = relative_error(decode(*m), w);
    EXPECT_LT(error, b.error);
    EXPECT_GT(error, b.error * 0.5);  // the bound itself is not slack
  }
}

TEST(QuantFormat, EveryFormatTakesHardWeights) {
  constexpr int64_t kRows = 4, kCols = 128;
  const std::vector<float> x = inputs(16, kCols);
  const Calibration calibration{.inputs = {x, 16, kCols}, .absmax = 50};
  std::vector<std::vector<float>> hard{std::vector<float>(kRows * kCols, 0.0f), normal(kRows * kCols, 1e-38f),
                                       normal(kRows * kCols, 1e30f), std::vector<float>(kRows * kCols, 0.7f)};
  hard.push_back(std::vector<float>(kRows * kCols, 0.0f));
  hard.back()[77] = -3;
  for (const QuantFormat& f : quant_formats()) {
    for (size_t i = 0; i < hard.size(); ++i) {
      SCOPED_TRACE(std::string(f.name) + " " + std::to_string(i));
      auto m = f.encode({hard[i], kRows, kCols}, f.defaults, &calibration);
      ASSERT_TRUE(m.ok()) << m.error().message;
      EXPECT_TRUE(validate(*m, "w").ok()) << validate(*m, "w").error().message;
      if (i == 3 || i == 4) {
        EXPECT_LT(relative_error(decode(*m), hard[i]), 0.16);
      }
    }
    std::vector<float> bad = normal(kRows * kCols);
    bad[200] = f.needs_inputs ? NAN : INFINITY;
    const auto refused = f.encode({bad, kRows, kCols}, f.defaults, &calibration);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find("row 1, column 72"), std::string::npos) << refused.error().message;
    if (f.needs_inputs) {
      EXPECT_FALSE(f.encode({hard[1], kRows, kCols}, f.defaults, nullptr).ok());
    }
  }
}

TEST(QuantFormat, GroupsThatDoNotFitAreRefused) {
  const std::vector<float> w = normal(4 * 96);
  EXPECT_FALSE(format("int4_wo").encode({w, 4, 96}, {.group = 64}, nullptr).ok());
  EXPECT_FALSE(format("int4_wo").encode({w, 4, 96}, {.group = 24}, nullptr).ok());
  EXPECT_FALSE(format("int4_wo").encode({w, 4, 96}, {.group = -32}, nullptr).ok());
  EXPECT_FALSE(format("nvfp4").encode({std::span(w).first(40), 1, 40}, {}, nullptr).ok());
  EXPECT_FALSE(format("mxfp4").encode({std::span(w).first(48), 1, 48}, {}, nullptr).ok());
  EXPECT_FALSE(find_quant_format("int5").ok());
}

TEST(Awq, LowersTheOutputErrorOfRounding) {
  constexpr int64_t kRows = 32, kCols = 256, kTokens = 128;
  for (const bool zero_points : {false, true}) {
    const std::vector<float> w = normal(kRows * kCols, 0.02f), x = inputs(kTokens, kCols);
    const Calibration calibration{.inputs = {x, kTokens, kCols}};
    const EncodeOptions options{.zero_points = zero_points};
    auto plain = encode_int4({w, kRows, kCols}, options, nullptr);
    auto awq = encode_awq({w, kRows, kCols}, options, &calibration);
    ASSERT_TRUE(plain.ok() && awq.ok());
    EXPECT_LT(output_error(decode(*awq), w, x, kCols), 0.75 * output_error(decode(*plain), w, x, kCols));
  }
}

TEST(Awq, TheReportedLossIsTheOutputsError) {
  constexpr int64_t kRows = 16, kCols = 128, kTokens = 32;
  const std::vector<float> w = normal(kRows * kCols, 0.02f), x = inputs(kTokens, kCols);
  const FloatMatrix weight{w, kRows, kCols};
  const AwqScales found = awq_search_scales(std::span(&weight, 1), {x, kTokens, kCols}, 128, true);
  auto plain = encode_int4(weight, {.zero_points = true}, nullptr);
  double size = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t n = 0; n < kRows; ++n) {
      double s = 0;
      for (int64_t k = 0; k < kCols; ++k) s += static_cast<double>(w[n * kCols + k]) * x[t * kCols + k];
      size += s * s / (kTokens * kRows);
    }
  }
  EXPECT_NEAR(std::sqrt(found.plain_loss / size), output_error(decode(*plain), w, x, kCols), 1e-3);
  EXPECT_LE(found.loss, found.plain_loss);
}

TEST(Gptq, LowersTheOutputErrorOfRounding) {
  constexpr int64_t kRows = 32, kCols = 256, kTokens = 512;
  const std::vector<float> x = inputs(kTokens, kCols);
  const Calibration calibration{.inputs = {x, kTokens, kCols}};
  for (const bool act_order : {false, true}) {
    for (const bool zero_points : {false, true}) {
      const std::vector<float> w = normal(kRows * kCols, 0.02f);
      const EncodeOptions options{.zero_points = zero_points, .act_order = act_order};
      auto plain = encode_int4({w, kRows, kCols}, options, nullptr);
      auto gptq = format("int4_gptq").encode({w, kRows, kCols}, options, &calibration);
      ASSERT_TRUE(gptq.ok()) << gptq.error().message;
      EXPECT_EQ(plan_packed(*gptq).why_not, "");
      EXPECT_LT(output_error(decode(*gptq), w, x, kCols), 0.5 * output_error(decode(*plain), w, x, kCols));
    }
  }
}

// With inputs that are independent and equally large there is nothing to compensate: plain rounding.
TEST(Gptq, IsRoundingWhereTheHessianIsDiagonal) {
  constexpr int64_t kRows = 8, kCols = 64;
  const std::vector<float> w = normal(kRows * kCols);
  std::vector<double> h(kCols * kCols);
  for (int64_t k = 0; k < kCols; ++k) h[k * kCols + k] = 3;
  const Calibration calibration{.hessian = h};
  auto plain = encode_int4({w, kRows, kCols}, {.group = 32}, nullptr);
  auto gptq = format("int4_gptq").encode({w, kRows, kCols}, {.group = 32}, &calibration);
  ASSERT_TRUE(gptq.ok());
  EXPECT_EQ(gptq->codes, plain->codes);
  EXPECT_EQ(gptq->scales, plain->scales);
}

TEST(SmoothQuant, LowersTheErrorOfEightBitInputs) {
  constexpr int64_t kRows = 32, kCols = 256, kTokens = 64;
  const std::vector<float> w = normal(kRows * kCols, 0.02f), x = inputs(kTokens, kCols);
  const Calibration calibration{.inputs = {x, kTokens, kCols}};
  auto smooth = format("int8_sq").encode({w, kRows, kCols}, format("int8_sq").defaults, &calibration);
  auto plain = format("int8_wo").encode({w, kRows, kCols}, {}, nullptr);
  ASSERT_TRUE(smooth.ok());
  const auto rounded_error = [&](const QuantizedMatrix& m, std::span<const float> multiplier) {
    std::vector<float> weight = decode(m), rounded = x;
    for (int64_t t = 0; t < kTokens; ++t) {
      float absmax = 0;
      for (int64_t k = 0; k < kCols; ++k) absmax = std::max(absmax, std::fabs(x[t * kCols + k] * multiplier[k]));
      for (int64_t k = 0; k < kCols; ++k) {
        const float scaled = x[t * kCols + k] * multiplier[k], s = absmax / 127;
        rounded[t * kCols + k] = std::nearbyint(scaled / s) * s / multiplier[k];
      }
    }
    double error = 0;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t n = 0; n < kRows; ++n) {
        double e = 0;
        for (int64_t k = 0; k < kCols; ++k) {
          e += static_cast<double>(weight[n * kCols + k]) * rounded[t * kCols + k] -
               static_cast<double>(w[n * kCols + k]) * x[t * kCols + k];
        }
        error += e * e;
      }
    }
    return std::sqrt(error);
  };
  const std::vector<float> ones(kCols, 1.0f);
  EXPECT_LT(rounded_error(*smooth, smooth->input_multiplier), 0.7 * rounded_error(*plain, ones));
}

// Own computation, by the formulas in the exporters.
TEST(Nvfp4, KnownBlock) {
  const std::vector<float> w{0, .1f, -.2f, .3f, .5f, -.75f, 1, 1.5f, 2, -2.5f, 3, .05f, -.01f, .6f, .9f, -1.2f};
  auto m = encode_nvfp4({w, 1, 16}, {}, nullptr);
  ASSERT_TRUE(m.ok());
  EXPECT_FLOAT_EQ(m->tensor_scale, 0.00111607143f);
  EXPECT_EQ(m->scales, std::vector<float>{448});
  const std::vector<uint8_t> bytes{0x00, 0x19, 0xb2, 0x54, 0xe6, 0x07, 0x28, 0xc4};
  for (int i = 0; i < 16; ++i) EXPECT_EQ(m->codes[i], i % 2 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15) << i;
}

TEST(Mxfp4, KnownBlock) {
  std::vector<float> w{0, .1f, -.2f, .3f, .5f, -.75f, 1, 1.5f, 2, -2.5f, 3, .05f, -.01f, .6f, .9f, -1.2f};
  for (int i = 0; i < 16; ++i) w.push_back(w[i] / 2);
  auto m = encode_mxfp4({w, 1, 32}, {}, nullptr);
  ASSERT_TRUE(m.ok());
  EXPECT_EQ(m->scales, std::vector<float>{0.5f});
  const std::vector<uint8_t> bytes{0x00, 0x19, 0xb2, 0x54, 0xe6, 0x07, 0x28, 0xc4,
                                   0x00, 0x18, 0xa1, 0x32, 0xc4, 0x05, 0x18, 0xa2};
  for (int i = 0; i < 32; ++i) EXPECT_EQ(m->codes[i], i % 2 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15) << i;
}

TEST(KvCache, RoundTripsWithinHalfAStep) {
  const std::vector<float> x = normal(128, 3);
  std::vector<uint8_t> fp8(128);
  std::vector<int8_t> int8(128);
  std::vector<float> back(128);
  kv_to_e4m3(x, 0.05f, fp8);
  kv_from_e4m3(fp8, 0.05f, back);
  for (int i = 0; i < 128; ++i) EXPECT_NEAR(back[i], x[i], std::max(std::fabs(x[i]) / 16, 0.05f * 0x1p-10f) * 1.0001f);
  const float scale = kv_to_int8(x, int8);
  kv_from_int8(int8, scale, back);
  for (int i = 0; i < 128; ++i) EXPECT_NEAR(back[i], x[i], scale * 0.5001f);
  const std::vector<float> zeros(128);
  EXPECT_EQ(kv_to_int8(zeros, int8), 1);
}

// Every int4 code of every zero point comes back.
TEST(Int4, CodesAreFixedPointsOfEncoding) {
  for (int zero = -8; zero < 8; ++zero) {
    const Int4Group g{.scale = 0.37f, .zero = static_cast<int8_t>(zero)};
    for (int q = -8; q < 8; ++q) EXPECT_EQ(g.encode(g.decode(static_cast<int8_t>(q))), q);
  }
}

}  // namespace
}  // namespace pinion
