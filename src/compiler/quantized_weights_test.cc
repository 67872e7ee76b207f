#include "compiler/quantized_weights.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "compiler/compiler.h"
#include "compiler/dense_weight.h"

namespace pinion {
namespace {
namespace fs = std::filesystem;

const fs::path kFixtures = fs::path(PINION_GOLDEN_DIR) / "quantized";

struct Fixture {
  Checkpoint checkpoint;
  QuantizedCheckpoint quantized;
  std::vector<float> expected;  // the whole linear; its first rows are those of the tool that wrote it
  explicit Fixture(const char* name, const std::string& tensor)
      : checkpoint(*Checkpoint::open(kFixtures / name)), quantized(*QuantizedCheckpoint::open(checkpoint)) {
    expected = decode(**quantized.read(tensor));
    const auto file = *SafetensorsFile::open(kFixtures / name / "expected.safetensors");
    const auto data = file.data(file.tensors().at("rows." + tensor));
    std::vector<float> rows(data.size() / sizeof(float));
    std::memcpy(rows.data(), data.data(), data.size());
    EXPECT_GT(expected.size(), rows.size());
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_NEAR(expected[i], rows[i], 1e-6f);
  }
  Status pack(const WeightUse& use, const WeightSpec& spec, std::span<std::byte> out) const {
    ThreadPool pool(2);
    PINION_TRY(const DenseWeight dense, DenseWeight::open(quantized, use, spec));
    return dense.pack(0, dense.rows(), out, pool);
  }
  std::vector<float> pack(const WeightUse& use) const {
    const WeightSpec spec{DType::f32, Layout::row_major, use.rows, use.cols};
    std::vector<float> out(use.rows * use.cols);
    const Status s = pack(use, spec, std::as_writable_bytes(std::span(out)));
    EXPECT_TRUE(s.ok()) << s.error().message;
    return out;
  }
};

// gpt-oss: one of three stacked experts, gate and up in turn in its rows, gate rows first in the packed weight's pairs.
TEST(QuantizedWeights, OneExpertOfAStackAndTheRowsOfOneOfItsLinears) {
  const std::string name = "model.layers.0.mlp.experts.gate_up_proj";
  const Fixture f("mxfp4", name);
  for (int64_t expert = 0; expert < 3; ++expert) {
    WeightUse use{.role = "weight", .rows = 32, .cols = 64};
    use.parts = {{.name = "model.layers.0.mlp.experts.up_proj",
                  .rows = 32,
                  .fused = {.name = name, .rows = 64, .first = 1, .block = 1, .stride = 2},
                  .stack = 3,
                  .index = expert}};
    const std::vector<float> got = f.pack(use);
    for (int64_t r = 0; r < 32; ++r) {
      for (int64_t k = 0; k < 64; ++k) {
        ASSERT_EQ(got[r * 64 + k], f.expected[(expert * 64 + 2 * r + 1) * 64 + k]) << expert << " " << r << " " << k;
      }
    }
  }
}

TEST(QuantizedWeights, PartsStackAndInterleaveAndRound) {
  const std::string name = "model.layers.0.mlp.up_proj";
  const Fixture f("awq", name);
  WeightUse use{.role = "weight", .rows = 64, .cols = 64, .interleave = true};
  use.parts = {{.name = name + ".weight", .rows = 32}, {.name = name + ".weight", .rows = 32}};
  const std::vector<float> got = f.pack(use);
  for (int64_t r = 0; r < 64; ++r) {
    for (int64_t k = 0; k < 64; ++k) ASSERT_NEAR(got[r * 64 + k], f.expected[r / 2 * 64 + k], 1e-8f) << r << " " << k;
  }
  const WeightSpec spec{DType::bf16, Layout::row_major, 64, 64};
  std::vector<uint16_t> bf16(64 * 64);
  ASSERT_TRUE(f.pack(use, spec, std::as_writable_bytes(std::span(bf16))).ok());
  for (size_t i = 0; i < bf16.size(); ++i) {
    uint32_t bits = static_cast<uint32_t>(bf16[i]) << 16;
    float v;
    std::memcpy(&v, &bits, 4);
    ASSERT_NEAR(v, got[i], 0.004f * std::fabs(got[i]));
  }
}

TEST(QuantizedWeights, AnotherShapeIsRefused) {
  const std::string name = "model.layers.0.mlp.up_proj";
  const Fixture f("awq", name);
  QuantizedWeights weights(f.quantized);
  const auto found = weights.find({.name = name + ".weight", .rows = 31}, 64);
  ASSERT_FALSE(found.ok());
  EXPECT_NE(found.error().message.find("[32, 64], the configuration makes it [31, 64]"), std::string::npos)
      << found.error().message;
  const auto absent = weights.find({.name = "model.norm.weight", .rows = 64}, 1);
  ASSERT_TRUE(absent.ok());
  EXPECT_FALSE(absent->has_value());
}

}  // namespace
}  // namespace pinion
