// compressed-tensors (vllm-project): groups of modules with the arguments of their weights and inputs. Which of a
// group's formats a module has is told by its tensors: weight_packed words, weight_packed bytes of fp4, or 8-bit
// weights.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "quant/sources/dense_codes.h"
#include "quant/sources/modules.h"
#include "quant/sources/sources.h"

namespace pinion {
namespace {

struct Group {
  std::vector<ModuleTarget> targets;
  int bits = 8;
  bool is_float = false, symmetric = true;
  std::string strategy;
  int64_t group_size = 0;
  int32_t block_rows = 0, block_cols = 0;
  InputQuant input = InputQuant::none;
};

class CompressedTensorsSource : public QuantSource {
 public:
  explicit CompressedTensorsSource(const Checkpoint& checkpoint) : tensors_(checkpoint) {}
  std::string_view name() const override { return "compressed-tensors"; }
  std::vector<Group> groups;

  Result<std::optional<QuantizedMatrix>> read(std::string_view prefix) const override {
    const std::string p(prefix);
    const bool packed = tensors_.has(p + ".weight_packed");
    if (!packed && !tensors_.has(p + ".weight_scale")) return std::optional<QuantizedMatrix>();
    const Group* group = nullptr;
    int best = 0;
    for (const Group& g : groups) {
      for (const ModuleTarget& t : g.targets) {
        if (const int m = t.match(prefix); m > best) {
          best = m;
          group = &g;
        }
      }
    }
    if (group == nullptr) {
      return tensors_.wrong(p + (packed ? ".weight_packed" : ".weight_scale"), "matches no target of config_groups");
    }
    PINION_TRY(QuantizedMatrix m, packed ? read_packed(p, *group) : read_8bits(p, *group));
    m.scheme.input = group->input;
    if (group->input == InputQuant::e4m3_static || group->input == InputQuant::int8_static) {
      PINION_TRY(m.input_scale, tensors_.scalar(p + ".input_scale"));
    }
    return std::optional(std::move(m));
  }

 private:
  Result<QuantizedMatrix> read_packed(const std::string& p, const Group& g) const {
    const std::string scale = p + ".weight_scale";
    if (!g.is_float) return read_words(p, g);
    if (tensors_.has(p + ".weight_global_scale")) {
      PINION_TRY(QuantizedMatrix m, read_fp4(tensors_, p + ".weight_packed", scale, 16));
      PINION_TRY(const float global, tensors_.scalar(p + ".weight_global_scale"));
      m.tensor_scale = 1 / global;  // validate() refuses what a zero or a NaN makes of it
      return m;
    }
    return read_fp4(tensors_, p + ".weight_packed", scale, 32);
  }

  // weight_packed I32 [N, ceil(K bits / 32)], a stream along each row of codes + 2^(bits - 1); zero points I32
  // [ceil(N bits / 32), K / g], a stream down each column.
  Result<QuantizedMatrix> read_words(const std::string& p, const Group& g) const {
    PINION_TRY(const std::vector<int32_t> shape, tensors_.ints(p + ".weight_shape", Shape{2}));
    const int64_t n = shape[0], k = shape[1];
    if (n <= 0 || k <= 0) return tensors_.wrong(p + ".weight_shape", "does not hold two positive numbers");
    const int64_t row_words = (k * g.bits + 31) / 32;
    PINION_TRY(const auto words, tensors_.ints(p + ".weight_packed", Shape{n, row_words}));
    QuantizedMatrix m{.scheme = {.bits = static_cast<int8_t>(g.bits),
                                 .block_rows = g.strategy == "tensor" ? 0 : 1,
                                 .block_cols = static_cast<int32_t>(g.group_size),
                                 .zero_points = !g.symmetric},
                      .rows = n,
                      .cols = k};
    if (g.group_size > 0 && k % g.group_size != 0) {
      return tensors_.wrong(p + ".weight_packed",
                            fmt::format("has rows of {}, which groups of {} do not divide", k, g.group_size));
    }
    const int middle = 1 << (g.bits - 1);
    m.codes.resize(n * k);
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t col = 0; col < k; ++col) {
        const uint32_t q = stream_bits(words.data() + row * row_words, 1, col, g.bits);
        m.codes[row * k + col] = static_cast<uint8_t>(static_cast<int>(q) - middle);
      }
    }
    const int64_t groups = m.scale_cols();
    PINION_TRY(m.scales, tensors_.floats(p + ".weight_scale", m.scale_rows() * groups));
    if (!g.symmetric) {
      if (!tensors_.has(p + ".weight_zero_point")) {
        return tensors_.wrong(p + ".weight_zero_point", "is missing, and \"symmetric\": false needs it");
      }
      const int64_t words_down = (m.scale_rows() * g.bits + 31) / 32;
      PINION_TRY(const auto zeros, tensors_.ints(p + ".weight_zero_point", Shape{words_down, groups}));
      for (int64_t row = 0; row < m.scale_rows(); ++row) {
        for (int64_t i = 0; i < groups; ++i) {
          const uint32_t z = stream_bits(zeros.data() + i, groups, row, g.bits);
          m.zeros.push_back(static_cast<int8_t>(static_cast<int>(z) - middle));
        }
      }
    }
    if (tensors_.has(p + ".weight_g_idx")) {
      PINION_TRY(m.column_group, tensors_.ints(p + ".weight_g_idx", Shape{k}));
    }
    return m;
  }

  Result<QuantizedMatrix> read_8bits(const std::string& p, const Group& g) const {
    const std::string weight = p + ".weight", scale = p + ".weight_scale";
    if (g.bits != 8) return tensors_.wrong(weight, fmt::format("is not packed, and has {} bits", g.bits));
    if (g.strategy == "block") return read_8bit(tensors_, weight, scale, g.block_rows, g.block_cols);
    if (g.strategy == "group") {
      return read_8bit(tensors_, weight, scale, 1, static_cast<int32_t>(g.group_size));
    }
    return read_8bit(tensors_, weight, scale);
  }

  QuantTensors tensors_;
};

// Settings that this file does not know could change what the numbers mean.
Status refuse_unknown(const ConfigReader& config, std::span<const std::string_view> known) {
  for (const auto& [key, value] : config.json().items()) {
    if (!value.is_null() && std::ranges::find(known, key) == known.end()) {
      return config.error(key, "this setting is not known", "remove it if it does not change the weights");
    }
  }
  return {};
}

constexpr std::array<std::string_view, 15> kArguments{
    "num_bits",        "type",     "symmetric", "strategy",  "group_size",
    "block_structure", "dynamic",  "actorder",  "observer",  "observer_kwargs",
    "scale_dtype",     "zp_dtype", "mse",       "is_online", "scale_calculation"};

Result<InputQuant> read_input(const ConfigReader& c) {
  PINION_OK(refuse_unknown(c, kArguments));
  PINION_TRY(const int64_t bits, c.int_or("num_bits", 8, {1, 64}));
  PINION_TRY(const std::string type, c.string_or("type", "int"));
  PINION_TRY(const std::string strategy, c.string_or("strategy", "tensor"));
  PINION_TRY(const bool symmetric, c.bool_or("symmetric", true));
  const Json* dynamic = c.find("dynamic");
  const bool is_dynamic = dynamic != nullptr && !(dynamic->is_boolean() && !dynamic->get<bool>());
  if (bits == 4 && type == "float") return InputQuant::e2m1_group16;
  if (bits != 8 || (type != "int" && type != "float")) {
    return c.error("num_bits", fmt::format("inputs of the type {}{} are not supported", type, bits));
  }
  // With an offset of their own (asymmetric), inputs stay in floats: that is only more exact.
  if (!symmetric) return InputQuant::none;
  if (type == "int") return is_dynamic ? InputQuant::int8_token : InputQuant::int8_static;
  if (!is_dynamic) return InputQuant::e4m3_static;
  return strategy == "group" ? InputQuant::e4m3_token_group128 : InputQuant::e4m3_token;
}

Status read_weights(const ConfigReader& c, Group& g) {
  PINION_OK(refuse_unknown(c, kArguments));
  PINION_TRY(const int64_t bits, c.int_or("num_bits", 8, {1, 64}));
  PINION_TRY(const std::string type, c.string_or("type", "int"));
  PINION_TRY(g.symmetric, c.bool_or("symmetric", true));
  PINION_TRY(const auto group_size, c.find_int("group_size", {-1, 1 << 20}));
  PINION_TRY(g.strategy, c.string_or("strategy", group_size.value_or(-1) > 0 ? "group" : "tensor"));
  g.is_float = type == "float";
  if ((!g.is_float && type != "int") || bits < 2 || bits > 8 || (g.is_float && bits != 4 && bits != 8)) {
    return c.error("num_bits", fmt::format("weights of the type {}{} are not supported", type, bits),
                   "supported: int of 2 to 8, float of 4 and 8");
  }
  g.bits = static_cast<int>(bits);
  constexpr std::array<std::string_view, 5> kStrategies{"tensor", "channel", "group", "block", "tensor_group"};
  if (std::ranges::find(kStrategies, g.strategy) == kStrategies.end()) {
    return c.error("strategy", fmt::format("\"{}\" is not supported for weights", g.strategy),
                   "supported: tensor, channel, group, block, tensor_group");
  }
  if (g.strategy == "group" || g.strategy == "tensor_group") {
    if (!group_size || *group_size <= 0) return c.error("group_size", "must be given and positive");
    g.group_size = *group_size;
  }
  if (g.is_float && g.bits == 4 && g.group_size != 16 && g.group_size != 32) {
    return c.error("group_size", "fp4 weights have groups of 16 or 32");
  }
  if (g.strategy == "block") {
    std::vector<int64_t> block;
    if (const Json* text = c.find("block_structure"); text != nullptr && text->is_string()) {  // "128x128" once
      if (text->get<std::string>() == "128x128") block = {128, 128};
    } else {
      PINION_TRY(const auto sizes, c.find_ints("block_structure", {1, 1 << 20}));
      if (sizes) block = *sizes;
    }
    if (block.size() != 2) return c.error("block_structure", "must have two positive numbers");
    g.block_rows = static_cast<int32_t>(block[0]);
    g.block_cols = static_cast<int32_t>(block[1]);
  }
  return {};
}

}  // namespace

SourceResult open_compressed_tensors(const Checkpoint& checkpoint, const ConfigReader& config) {
  constexpr std::array<std::string_view, 9> kFormats{
      "dense",          "int-quantized",        "float-quantized",      "naive-quantized",
      "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized",
      "mixed-precision"};
  const auto check_format = [&](const ConfigReader& c) -> Status {
    PINION_TRY(const std::string format, c.string_or("format", "dense"));
    if (std::ranges::find(kFormats, format) != kFormats.end()) return {};
    return c.error("format", fmt::format("\"{}\" is not supported", format),
                   "supported: int-quantized, float-quantized, naive-quantized, pack-quantized, "
                   "nvfp4-pack-quantized, mxfp4-pack-quantized, mxfp8-quantized");
  };
  PINION_OK(check_format(config));
  for (const char* key : {"sparsity_config", "transform_config"}) {
    const Json* value = config.find(key);
    if (value == nullptr || value->empty()) continue;
    if (value->is_object() && value->value("format", Json()) == "dense") continue;
    return config.error(key, "is not supported", "export the checkpoint without it");
  }
  auto source = std::make_unique<CompressedTensorsSource>(checkpoint);
  PINION_TRY(const ConfigReader groups, config.require_section("config_groups"));
  for (const auto& [name, value] : groups.json().items()) {
    if (!value.is_object()) return groups.error(name, "must be an object");
    const ConfigReader c(value, config.where(), fmt::format("config_groups.{}.", name));
    PINION_OK(check_format(c));
    Group group;
    PINION_TRY(const auto targets, c.find_strings("targets"));
    if (!targets || targets->empty()) return c.error("targets", "must name modules");
    for (const std::string& t : *targets) {
      PINION_TRY(ModuleTarget target, ModuleTarget::compile(t, config.where()));
      group.targets.push_back(std::move(target));
    }
    PINION_TRY(const ConfigReader weights, c.require_section("weights"));
    PINION_OK(read_weights(weights, group));
    PINION_TRY(const auto input, c.find_section("input_activations"));
    if (input) {
      PINION_TRY(group.input, read_input(*input));
    }
    if (c.has("output_activations")) return c.error("output_activations", "is not supported");
    source->groups.push_back(std::move(group));
  }
  return std::unique_ptr<QuantSource>(std::move(source));
}

}  // namespace pinion
