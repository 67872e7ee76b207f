// Models that other tools quantised, through the whole engine: their logits against those of an independent reader
// (test/golden/quantized/make_fixtures.py), with weights expanded and packed, and inputs rounded where the format says.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "backend/all/backends.h"
#include "calibrate/sequence_runner.h"
#include "compiled_model.h"
#include "golden_file.h"
#include "test_data.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

// Whether the format rounds the linears' inputs where an engine keeps the weights packed, and how many matrices stay
// packed: qkv, o, gate and up, down, but those whose parts differ (an act-order, block types) and those with settings
// that no kernel reads.
struct Fixture {
  const char* name;
  bool inputs;
  int packed;
};
constexpr Fixture kAll[] = {{"awq", false, 4},
                            {"gptq_4bit", false, 4},
                            {"gptq_4bit_act_order", false, 2},
                            {"gptq_3bit", false, 0},
                            {"gptq_8bit_v2", false, 4},
                            {"ct_fp8_tensor", true, 4},
                            {"ct_fp8_channel", true, 4},
                            {"ct_fp8_block", false, 4},
                            {"ct_w8a8", true, 4},
                            {"ct_w4a16", false, 4},
                            {"ct_w4a16_asym", false, 2},
                            {"ct_w8a16", false, 4},
                            {"ct_w3a16", false, 0},
                            {"ct_nvfp4", false, 4},
                            {"ct_mxfp4", false, 4},
                            {"hf_fp8_block", true, 4},
                            {"hf_fp8_tensor", true, 4},
                            {"fbgemm_fp8", true, 4},
                            {"modelopt_w4a16_awq", false, 0},
                            {"modelopt_nvfp4", false, 4},
                            {"modelopt_mixed", true, 4},
                            {"mxfp4", false, 2},
                            {"gguf", false, 3}};

std::vector<float> logits(const CompiledModel& m, const std::vector<int32_t>& ids, size_t last) {
  SequenceRunner runner(m.executor());
  const auto all = runner.run(ids, 0, static_cast<int32_t>(ids.size()));
  return {all.end() - static_cast<int64_t>(last), all.end()};
}

double largest(const std::vector<float>& v) {
  double most = 0;
  for (const float x : v) most = std::max<double>(most, std::fabs(x));
  return most;
}

double farthest(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max<double>(most, std::fabs(a[i] - b[i]));
  return most;
}

class Imported : public testing::TestWithParam<Fixture> {};

TEST_P(Imported, GivesTheLogitsOfAnIndependentReader) {
  const Fixture& f = GetParam();
  const fs::path dir = golden_dir() / "quantized" / f.name;
  const auto expected = SafetensorsFile::open(dir / "expected.safetensors");
  ASSERT_TRUE(expected.ok()) << expected.error().message;
  const auto ids = read<int32_t>(*expected, "input_ids");
  const auto floats = read<float>(*expected, "logits");
  const auto rounded = f.inputs ? read<float>(*expected, "logits_inputs") : floats;
  EXPECT_EQ(expected->tensors().contains("logits_inputs"), f.inputs);
  ASSERT_EQ(floats.size(), rounded.size());
  const fs::path checkpoint = fs::exists(dir / "model.gguf") ? dir / "model.gguf" : dir;
  const ExecutorOptions limits{.max_batch_size = 1, .max_num_tokens = 64, .max_outputs = 64};
  // Sums of float32 in another order, and half a step (2^-14) of the fixture's logits. Rounded inputs need no more:
  // the prompts are such that no input lies near the border of two codes.
  const double bound = 1e-4 + 5e-5 * largest(floats);
  for (const char* name : {"cpu", "reference"}) {
    SCOPED_TRACE(name);
    const Backend& backend = *find_backend(name);
    const CompiledModel expanded(checkpoint, backend, {.dtype = DType::f32, .packed = false}, limits);
    EXPECT_LT(farthest(logits(expanded, ids, floats.size()), floats), bound);
    const CompiledModel packed(checkpoint, backend, {.dtype = DType::f32}, limits);
    const auto got = logits(packed, ids, floats.size());
    EXPECT_LT(farthest(got, rounded), bound);
    EXPECT_EQ(std::ranges::count(packed.engine().weights(), Layout::packed,
                                 [](const PackedWeight& w) { return w.spec.layout; }),
              f.packed);
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Imported, testing::ValuesIn(kAll),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace pinion
