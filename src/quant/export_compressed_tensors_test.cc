#include "quant/export_compressed_tensors.h"

#include <gtest/gtest.h>

#include <random>

#include "checkpoint/scratch_for_test.h"
#include "checkpoint/writer.h"
#include "quant/quant_format.h"
#include "quant/quantized_checkpoint.h"

namespace pinion {
namespace {

// What every format writes is read back with equal codes, scales and zero points, and the same scheme.
TEST(ExportCompressedTensors, ReadsBackEqual) {
  std::mt19937 random(std::random_device{}());
  std::normal_distribution<float> normal(0, 0.02f);
  constexpr int64_t kRows = 24, kCols = 256, kTokens = 8;
  std::vector<float> w(kRows * kCols), x(kTokens * kCols);
  for (float& v : w) v = normal(random);
  for (float& v : x) v = normal(random);
  const Calibration calibration{.inputs = {x, kTokens, kCols}, .absmax = 3};
  struct Case {
    const char* format;
    EncodeOptions options;
  };
  const Case cases[] = {{"fp8", {.block_rows = 0, .block_cols = 0, .input = InputQuant::e4m3_static}},
                        {"fp8", {.input = InputQuant::e4m3_token}},
                        {"fp8", {.block_rows = 128, .block_cols = 128, .input = InputQuant::e4m3_token_group128}},
                        {"int8_wo", {}},
                        {"int8_wo", {.input = InputQuant::int8_token}},
                        {"int8_wo", {.input = InputQuant::int8_static}},
                        {"int4_wo", {.group = 32}},
                        {"int4_wo", {.group = 128, .zero_points = true}},
                        {"int4_gptq", {.group = 64, .zero_points = true}},
                        {"nvfp4", {}},
                        {"mxfp4", {}}};
  for (const Case& c : cases) {
    auto m = (*find_quant_format(c.format))->encode({w, kRows, kCols}, c.options, &calibration);
    ASSERT_TRUE(m.ok()) << m.error().message;
    SCOPED_TRACE(std::string(c.format) + ": " + str(m->scheme));
    auto tensors = export_compressed_tensors("layer.0.up", *m);
    ASSERT_TRUE(tensors.ok()) << tensors.error().message;
    std::vector<TensorToWrite> write;
    for (const ExportedTensor& t : *tensors) write.push_back({t.name, t.dtype, t.shape, std::span(t.data)});
    const ScratchDir dir;
    const std::vector<std::string> ignored{"lm_head"};
    const Json config = {
        {"quantization_config", compressed_tensors_config(std::vector{SchemeGroup{m->scheme, {}}}, ignored)}};
    ASSERT_TRUE(write_hf_files(dir.path(), config, write).ok());
    auto checkpoint = Checkpoint::open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    auto quantized = QuantizedCheckpoint::open(*checkpoint);
    ASSERT_TRUE(quantized.ok()) << quantized.error().message;
    auto back = quantized->read("layer.0.up");
    ASSERT_TRUE(back.ok()) << back.error().message;
    ASSERT_TRUE(back->has_value());
    EXPECT_EQ((*back)->scheme, m->scheme) << str((*back)->scheme);
    EXPECT_EQ((*back)->codes, m->codes);
    EXPECT_EQ((*back)->scales, m->scales);
    EXPECT_EQ((*back)->zeros, m->zeros);
    EXPECT_FLOAT_EQ((*back)->tensor_scale, m->tensor_scale);
    EXPECT_EQ((*back)->input_scale, m->input_scale);
  }
}

TEST(ExportCompressedTensors, RefusesInputMultipliers) {
  QuantizedMatrix m{.rows = 1, .cols = 2, .codes = {1, 2}, .scales = {1}, .input_multiplier = {1, 2}};
  EXPECT_FALSE(export_compressed_tensors("a", m).ok());
}

}  // namespace
}  // namespace pinion
