#include "quant/quantized_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>

#include "checkpoint/scratch_for_test.h"
#include "quant/packed.h"
#include "quant/sources/modules.h"

namespace pinion {
namespace {
namespace fs = std::filesystem;

const fs::path kFixtures = fs::path(PINION_GOLDEN_DIR) / "quantized";
constexpr const char* kUp = "model.layers.0.mlp.up_proj";

struct Fixture {
  const char* name;
  const char* source;
  const char* scheme;
  const char* why_not;  // no packed layout, because …; empty: there is one
};

const Fixture kAll[] = {
    {"awq", "AutoAWQ", "int4 group 32, zero points", ""},
    {"gptq_4bit", "GPTQ", "int4 group 32, zero points", ""},
    {"gptq_4bit_act_order", "GPTQ", "int4 group 32", ""},
    {"gptq_3bit", "GPTQ", "int3 group 32, zero points", "3-bit"},
    {"gptq_8bit_v2", "GPTQ", "int8 group 32, zero points", ""},
    {"ct_fp8_tensor", "compressed-tensors", "fp8 e4m3 per tensor, fp8 inputs (static)", ""},
    {"ct_fp8_channel", "compressed-tensors", "fp8 e4m3 per channel, fp8 inputs (per token)", ""},
    {"ct_fp8_block", "compressed-tensors", "fp8 e4m3 blocks 128x128", ""},
    {"ct_w8a8", "compressed-tensors", "int8 per channel, int8 inputs (per token)", ""},
    {"ct_w4a16", "compressed-tensors", "int4 group 32", ""},
    {"ct_w4a16_asym", "compressed-tensors", "int4 group 64, zero points", ""},
    {"ct_w8a16", "compressed-tensors", "int8 per channel", ""},
    {"ct_w3a16", "compressed-tensors", "int3 group 32", "3-bit"},
    {"ct_nvfp4", "compressed-tensors", "fp4 e2m1 group 16", ""},
    {"ct_mxfp4", "compressed-tensors", "fp4 e2m1 group 32", ""},
    {"hf_fp8_block", "fp8", "fp8 e4m3 blocks 128x128, fp8 inputs (per token and 128 columns)", ""},
    {"hf_fp8_tensor", "fp8", "fp8 e4m3 per tensor, fp8 inputs (static)", ""},
    {"fbgemm_fp8", "fbgemm fp8", "fp8 e4m3 per channel, fp8 inputs (per token)", ""},
    {"modelopt_w4a16_awq", "ModelOpt", "int4 group 32", "multipliers"},
    {"modelopt_nvfp4", "ModelOpt", "fp4 e2m1 group 16, fp4 inputs (per 16 columns)", ""},
    {"modelopt_mixed", "ModelOpt", "fp8 e4m3 per tensor, fp8 inputs (static)", ""},
    {"mxfp4", "MXFP4", "fp4 e2m1 group 32", ""},
};

std::vector<float> floats(std::span<const std::byte> data) {
  std::vector<float> out(data.size() / sizeof(float));
  std::memcpy(out.data(), data.data(), data.size());
  return out;
}

// A linear of the fixture against what the tool itself makes of its first rows. (What it makes of all of them shows in
// the logits: test/e2e/imported_test.cc.)
TEST(QuantizedCheckpoint, ReadsWhatOtherToolsWrote) {
  for (const Fixture& f : kAll) {
    SCOPED_TRACE(f.name);
    auto checkpoint = Checkpoint::open(kFixtures / f.name);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    auto quantized = QuantizedCheckpoint::open(*checkpoint);
    ASSERT_TRUE(quantized.ok()) << quantized.error().message;
    EXPECT_EQ(quantized->source(), f.source);
    auto expected = SafetensorsFile::open(kFixtures / f.name / "expected.safetensors");
    ASSERT_TRUE(expected.ok()) << expected.error().message;
    int linears = 0;
    for (const auto& [name, info] : expected->tensors()) {
      if (!name.starts_with("rows.")) continue;
      SCOPED_TRACE(name);
      ++linears;
      auto m = quantized->read(name.substr(5));
      ASSERT_TRUE(m.ok()) << m.error().message;
      ASSERT_TRUE(m->has_value());
      const QuantizedMatrix& q = **m;
      EXPECT_GT(q.rows, info.shape[0]);
      ASSERT_EQ(q.cols, info.shape[1]);
      EXPECT_EQ(str(q.scheme), f.scheme);
      const std::vector<float> want = floats(expected->data(info)), got = decode(q);
      float largest = 0;
      for (const float v : want) largest = std::max(largest, std::fabs(v));
      // The tools compute in other orders, some in bfloat16 scales: a few units of the last place of f32 or f16.
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], 2e-6f * largest + 1e-6f * std::fabs(want[i])) << "element " << i;
      }
      const PackedPlan plan = plan_packed(q);
      if (f.why_not[0] != '\0') {
        EXPECT_NE(plan.why_not.find(f.why_not), std::string::npos) << plan.why_not;
        continue;
      }
      ASSERT_EQ(plan.why_not, "");
      std::vector<float> packed(got.size());
      decode_packed(plan.layout, pack(q), 0, q.rows, packed);
      EXPECT_EQ(packed, got);
    }
    EXPECT_EQ(linears, 1);
  }
}

TEST(QuantizedCheckpoint, FloatsAreNotQuantized) {
  auto checkpoint = Checkpoint::open(kFixtures / "hf_fp8_block");
  ASSERT_TRUE(checkpoint.ok());
  auto quantized = QuantizedCheckpoint::open(*checkpoint);
  ASSERT_TRUE(quantized.ok());
  auto m = quantized->read("model.embed_tokens");
  ASSERT_TRUE(m.ok());
  EXPECT_FALSE(m->has_value());
}

// A copy of a fixture with its description changed.
class Changed {
 public:
  Changed(const char* fixture, const std::function<void(Json&)>& change) {
    fs::copy(kFixtures / fixture, dir_.path(), fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    const bool side = fs::exists(dir_ / "hf_quant_config.json");
    const fs::path file = dir_ / (side ? "hf_quant_config.json" : "config.json");
    Json json = Json::parse(slurp(file));
    change(side ? json["quantization"] : json["quantization_config"]);
    spit(file, json.dump());
  }
  // The error of opening or reading it; "read" when there is none.
  std::string error(const char* prefix = kUp) {
    auto checkpoint = Checkpoint::open(dir_.path());
    if (!checkpoint) return checkpoint.error().message;
    auto quantized = QuantizedCheckpoint::open(*checkpoint);
    if (!quantized) return quantized.error().message;
    auto m = quantized->read(prefix);
    return m ? "read" : m.error().message;
  }

 private:
  ScratchDir dir_;
};

TEST(QuantizedCheckpoint, RefusesUnknownSettingsByName) {
  struct Bad {
    const char* fixture;
    const char* key;
    Json value;
    const char* message;
  };
  const Bad cases[] = {
      {"awq", "quant_method", "aqlm", "\"aqlm\" is not supported"},
      {"awq", "quant_method", "bitsandbytes", "\"bitsandbytes\" is not supported"},
      {"awq", "bits", 3, "AWQ with 3 bits"},
      {"awq", "version", "gemv", "\"gemv\" is not supported"},
      {"awq", "group_size", 48, "groups of 48 do not divide"},
      {"awq", "group_size", 64, "model.layers.0.mlp.up_proj.scales"},
      {"awq", "group_size", 0, "group_size"},
      {"awq", "zero_point", "yes", "zero_point"},
      {"gptq_4bit", "bits", 5, "GPTQ with 5 bits"},
      {"gptq_4bit", "bits", 8, "up_proj"},
      {"gptq_4bit", "group_size", 48, "4 bits in groups of 48"},
      {"gptq_4bit", "group_size", 16, "model.layers.0.mlp.up_proj.scales"},
      {"gptq_4bit", "group_size", 0, "group_size"},
      {"gptq_4bit", "checkpoint_format", "marlin", "\"marlin\" is not supported"},
      {"gptq_4bit", "dynamic", {{"up_proj", {{"bits", 8}}}}, "settings of their own for \"up_proj\""},
      {"ct_w4a16", "format", "marlin-24", "\"marlin-24\" is not supported"},
      {"ct_w4a16", "transform_config", {{"config_groups", 1}}, "transform_config"},
      {"ct_w4a16", "sparsity_config", {{"format", "sparse-24-bitmask"}}, "sparsity_config"},
      {"ct_w4a16", "config_groups", Json::object(), "matches no target"},
      {"ct_w4a16", "config_groups", 5, "config_groups"},
      {"hf_fp8_block", "fmt", "e5m2", "\"e5m2\" is not supported"},
      {"hf_fp8_block", "weight_block_size", {64, 128}, "weight_scale_inv"},
      {"hf_fp8_block", "weight_block_size", {128}, "two numbers"},
      {"hf_fp8_tensor", "activation_scheme", "magic", "\"magic\" is not supported"},
      {"modelopt_w4a16_awq", "quant_algo", "NVFP9", "\"NVFP9\" is not supported"},
      {"modelopt_w4a16_awq", "quant_algo", "AWQ", "\"AWQ\" is not supported"},
      {"modelopt_w4a16_awq", "has_zero_point", true, "has_zero_point"},
      {"modelopt_w4a16_awq", "group_size", 64, "weight_scale"},
      {"modelopt_mixed", "quantized_layers", Json::object(), "does not list"},
  };
  for (const Bad& bad : cases) {
    Changed changed(bad.fixture, [&](Json& q) { q[bad.key] = bad.value; });
    EXPECT_NE(changed.error().find(bad.message), std::string::npos)
        << bad.fixture << " " << bad.key << " " << bad.value << ": " << changed.error();
  }
}

TEST(QuantizedCheckpoint, RefusesUnknownWeightArguments) {
  const auto with = [](const char* fixture, const char* key, const Json& value) {
    return Changed(fixture, [&](Json& q) { q["config_groups"]["group_0"]["weights"][key] = value; }).error();
  };
  EXPECT_EQ(with("ct_w4a16", "observer", "mse"), "read");
  EXPECT_NE(with("ct_w4a16", "rotation", 1).find("rotation"), std::string::npos);
  EXPECT_NE(with("ct_w4a16", "strategy", "spiral").find("\"spiral\""), std::string::npos);
  EXPECT_NE(with("ct_w4a16", "num_bits", 9).find("int9"), std::string::npos);
  EXPECT_NE(with("ct_w4a16", "group_size", 0).find("group_size"), std::string::npos);
  EXPECT_NE(with("ct_w4a16", "group_size", 48).find("groups of 48 do not divide"), std::string::npos);
  EXPECT_NE(with("ct_w4a16", "symmetric", false).find("weight_zero_point\" is missing"), std::string::npos);
  EXPECT_NE(with("ct_fp8_block", "block_structure", {128}).find("block_structure"), std::string::npos);
}

TEST(QuantizedCheckpoint, GroupsMatchByNameThenPatternThenClass) {
  const auto target = [](const char* text) { return *ModuleTarget::compile(text, "test"); };
  EXPECT_EQ(target(kUp).match(kUp), 3);
  EXPECT_EQ(target("re:model\\.layers\\.\\d+\\.mlp").match(kUp), 2);
  EXPECT_EQ(target("re:mlp").match(kUp), 0);  // a pattern begins where the name does
  EXPECT_EQ(target("re:.*up_proj$").match(kUp), 2);
  EXPECT_EQ(target("Linear").match(kUp), 1);
  EXPECT_EQ(target("Embedding").match(kUp), 0);
}

// A scale of zero, NaN or infinity, and a tensor that nobody reads: refused with the tensor named, or zero as padding.
TEST(QuantizedCheckpoint, BadTensorsAreNamed) {
  const auto with_scale = [](float value) {
    ScratchDir dir;
    spit(dir / "config.json", R"({"quantization_config": {"quant_method": "fp8"}})");
    std::string data(4 + 4, '\x38');
    std::memcpy(data.data() + 4, &value, 4);
    spit(dir / "model.safetensors",
         safetensors_bytes(R"({"a.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},)"
                           R"("a.weight_scale":{"dtype":"F32","shape":[],"data_offsets":[4,8]}})",
                           data));
    auto checkpoint = Checkpoint::open(dir.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    auto quantized = QuantizedCheckpoint::open(*checkpoint);
    auto m = quantized->read("a");
    return m ? std::string("read") : m.error().message;
  };
  EXPECT_EQ(with_scale(2), "read");
  EXPECT_EQ(with_scale(0), "read");
  EXPECT_NE(with_scale(NAN).find("the scale 0 is nan (a, "), std::string::npos);
  EXPECT_NE(with_scale(INFINITY).find("the scale 0 is inf"), std::string::npos);
  EXPECT_NE(with_scale(-1).find("the scale 0 is -1"), std::string::npos);

  ScratchDir dir;
  spit(dir / "config.json", R"({"quantization_config": {"quant_method": "fp8"}})");
  spit(dir / "model.safetensors",
       safetensors_bytes(R"({"a.weight":{"dtype":"F8_E4M3","shape":[1,4],"data_offsets":[0,4]},)"
                         R"("a.weight_outliers":{"dtype":"F32","shape":[],"data_offsets":[4,8]},)"
                         R"("a.weight_scale":{"dtype":"F32","shape":[],"data_offsets":[8,12]}})",
                         std::string("\x38\x38\x38\x38\0\0\0\0\0\0\x80\x3f", 12)));
  auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  auto quantized = QuantizedCheckpoint::open(*checkpoint);
  auto m = quantized->read("a");
  ASSERT_FALSE(m.ok());
  EXPECT_NE(m.error().message.find("a.weight_outliers"), std::string::npos) << m.error().message;
}

// A number as each type of scales has it; empty: the type has none such.
std::string bytes_of(DType type, float value) {
  const auto same = [&](std::string_view zero, std::string_view infinity, std::string_view nan) {
    return std::string(value == 0 ? zero : std::isnan(value) ? nan : infinity);
  };
  switch (type) {
    case DType::f16:
      return same({"\0\0", 2}, {"\0\x7c", 2}, {"\0\x7e", 2});
    case DType::bf16:
      return same({"\0\0", 2}, "\x80\x7f", "\xc0\x7f");
    case DType::f8_e4m3:
      return same({"\0", 1}, "", "\x7f");
    case DType::f8_e8m0:
    case DType::u8:
      return same("", "", "\xff");
    default:
      return {reinterpret_cast<const char*>(&value), sizeof value};
  }
}

// The error of reading `module` of a fixture whose `tensor` begins with `value`; "read" when there is none.
std::string error_with(const char* fixture, const std::string& module, const std::string& tensor,
                       const std::string& value) {
  const ScratchDir dir;
  fs::copy(kFixtures / fixture, dir.path(), fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  const fs::path file = dir / "model.safetensors";
  std::string bytes = slurp(file);
  {
    const auto opened = SafetensorsFile::open(file);
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof header);
    bytes.replace(8 + header + opened->tensors().at(tensor).begin, value.size(), value);
  }
  fs::remove(file);
  spit(file, bytes);
  const auto checkpoint = Checkpoint::open(dir.path());
  if (!checkpoint) return checkpoint.error().message;
  const auto m = QuantizedCheckpoint::open(*checkpoint)->read(module);
  return m ? "read" : m.error().message;
}

TEST(QuantizedCheckpoint, ABadScaleIsNamedWhateverToolWroteIt) {
  for (const Fixture& f : kAll) {
    SCOPED_TRACE(f.name);
    const auto opened = SafetensorsFile::open(kFixtures / f.name / "model.safetensors");
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    std::string module, scales;
    DType type = DType::f32;
    for (const auto& [name, info] : opened->tensors()) {
      for (const std::string_view suffix : {".scales", ".weight_scale", ".weight_scale_inv", "_scales"}) {
        if (module.empty() && name.ends_with(suffix)) {
          module = name.substr(0, name.size() - suffix.size()), scales = name, type = info.dtype;
        }
      }
    }
    ASSERT_NE(module, "");
    for (const float value : {NAN, INFINITY, 0.0f}) {
      const std::string bytes = bytes_of(type, value);
      if (bytes.empty()) continue;
      const std::string error = error_with(f.name, module, scales, bytes);
      const std::string want = std::string("the scale 0 is ") + (std::isnan(value) ? "nan" : "inf") + " (" + module;
      EXPECT_NE(error.find(value == 0 ? "read" : want), std::string::npos) << value << ": " << error;
    }
  }
}

TEST(QuantizedCheckpoint, BadNumbersBesideTheScalesAreNamed) {
  const struct {
    const char *fixture, *tensor;
    std::vector<float> values;
    const char* message;
  } cases[] = {{"ct_fp8_tensor", "input_scale", {0, NAN, INFINITY, -1}, "the input scale is"},
               {"hf_fp8_tensor", "input_scale", {0, NAN, INFINITY, -1}, "the input scale is"},
               {"modelopt_mixed", "input_scale", {0, NAN, INFINITY, -1}, "the input scale is"},
               {"modelopt_nvfp4", "weight_scale_2", {0, NAN, INFINITY, -1}, "the tensor's scale is"},
               {"ct_nvfp4", "weight_global_scale", {0, NAN, INFINITY, -1}, "the tensor's scale is"},
               {"modelopt_w4a16_awq", "pre_quant_scale", {NAN, INFINITY}, "an input multiplier is"},
               {"hf_fp8_block", "weight", {NAN}, "an fp8 weight is NaN"},
               {"gptq_4bit_act_order", "g_idx", {NAN}, "a column's group is not in 0 … 1"}};
  for (const auto& c : cases) {
    for (const float value : c.values) {
      const bool fp8 = c.tensor == std::string_view("weight");
      const std::string error = error_with(c.fixture, kUp, std::string(kUp) + "." + c.tensor,
                                           bytes_of(fp8 ? DType::f8_e4m3 : DType::f32, value));
      EXPECT_NE(error.find(c.message), std::string::npos) << c.fixture << " " << value << ": " << error;
      EXPECT_NE(error.find(kUp), std::string::npos) << c.fixture << " " << value << ": " << error;
    }
  }
}

TEST(QuantizedCheckpoint, MissingZeroPointsAreNamed) {
  for (const char* fixture : {"awq", "gptq_4bit"}) {
    const ScratchDir dir;
    fs::copy(kFixtures / fixture, dir.path(), fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    const fs::path file = dir / "model.safetensors";
    std::string bytes = slurp(file);
    const std::string zeros = std::string(kUp) + ".qzeros";
    const size_t at = bytes.find(zeros);
    ASSERT_NE(at, std::string::npos);
    bytes[at + zeros.size() - 1] = 't';
    fs::remove(file);
    spit(file, bytes);
    const auto checkpoint = Checkpoint::open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    const auto m = QuantizedCheckpoint::open(*checkpoint)->read(kUp);
    ASSERT_FALSE(m.ok());
    EXPECT_NE(m.error().message.find(zeros), std::string::npos) << m.error().message;
  }
}

TEST(Modules, Wildcards) {
  EXPECT_TRUE(wildcard_match("model.layers.*.mlp", "model.layers.17.mlp"));
  EXPECT_TRUE(wildcard_match("*lm_head*", "lm_head"));
  EXPECT_TRUE(wildcard_match("a?c", "abc"));
  EXPECT_FALSE(wildcard_match("model.layers.0", "model.layers.01"));
  EXPECT_FALSE(wildcard_match("a*b", "aaac"));
  EXPECT_FALSE(wildcard_match(std::string(50, '*') + "x", std::string(100000, 'a')));
}

}  // namespace
}  // namespace pinion
