// NVIDIA ModelOpt (TensorRT Model Optimizer): hf_quant_config.json's "quantization", or the same in config.json.
// Integer nibbles are pairs of output rows, two's complement: byte [r, k] = q[2r, k] | q[2r + 1, k] << 4.
#include <fmt/format.h>

#include <map>

#include "quant/sources/dense_codes.h"
#include "quant/sources/modules.h"
#include "quant/sources/sources.h"

namespace pinion {
namespace {

struct Algorithm {
  std::string name;
  int32_t group = 0;  // as the file says; 0: it does not
};

constexpr std::string_view kAlgorithms =
    "FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, W4A16_AWQ, W4A8_AWQ, W8A16, W8A8_SQ_PER_CHANNEL, NVFP4, NVFP4_AWQ, "
    "W4A8_NVFP4_FP8, W4A8_MXFP4_FP8";

class ModelOptSource : public QuantSource {
 public:
  explicit ModelOptSource(const Checkpoint& checkpoint) : tensors_(checkpoint) {}
  std::string_view name() const override { return "ModelOpt"; }

  Algorithm all;                              // of every layer; empty with mixed precision
  std::map<std::string, Algorithm> by_layer;  // mixed precision

  Result<std::optional<QuantizedMatrix>> read(std::string_view prefix) const override {
    const std::string p(prefix);
    if (!tensors_.has(p + ".weight_scale")) return std::optional<QuantizedMatrix>();
    const auto own = by_layer.find(p);
    if (own == by_layer.end() && all.name.empty()) {
      return tensors_.wrong(p + ".weight_scale", "belongs to a layer that quantized_layers does not list");
    }
    const Algorithm& algorithm = own == by_layer.end() ? all : own->second;
    PINION_TRY(QuantizedMatrix m, read_weight(p, algorithm));
    if (tensors_.has(p + ".pre_quant_scale")) {
      PINION_TRY(m.input_multiplier, tensors_.floats(p + ".pre_quant_scale", m.cols));
    }
    return std::optional(std::move(m));
  }

 private:
  Result<QuantizedMatrix> read_weight(const std::string& p, const Algorithm& algorithm) const {
    const std::string weight = p + ".weight", scale = p + ".weight_scale";
    const std::string& a = algorithm.name;
    if (a == "FP8_PB_WO") return read_8bit(tensors_, weight, scale, 128, 128);
    if (a == "FP8" || a == "FP8_PER_CHANNEL_PER_TOKEN" || a == "W8A16" || a == "W8A8_SQ_PER_CHANNEL") {
      PINION_TRY(QuantizedMatrix m, read_8bit(tensors_, weight, scale));
      if (a == "FP8") m.scheme.input = InputQuant::e4m3_static;
      if (a == "FP8_PER_CHANNEL_PER_TOKEN") m.scheme.input = InputQuant::e4m3_token;
      if (a == "W8A8_SQ_PER_CHANNEL") m.scheme.input = InputQuant::int8_static;
      return with_input_scale(p, std::move(m));
    }
    if (a == "W4A16_AWQ" || a == "W4A8_AWQ") {
      PINION_TRY(QuantizedMatrix m, read_int4(weight, scale, algorithm.group ? algorithm.group : 128));
      if (a == "W4A8_AWQ") m.scheme.input = InputQuant::e4m3_static;
      return with_input_scale(p, std::move(m));
    }
    if (a == "W4A8_MXFP4_FP8") {
      PINION_TRY(QuantizedMatrix m, read_fp4(tensors_, weight, scale, 32));
      m.scheme.input = InputQuant::e4m3_static;
      return with_input_scale(p, std::move(m));
    }
    // NVFP4, NVFP4_AWQ, W4A8_NVFP4_FP8
    PINION_TRY(QuantizedMatrix m, read_fp4(tensors_, weight, scale, 16));
    PINION_TRY(m.tensor_scale, tensors_.scalar(p + ".weight_scale_2"));
    m.scheme.input = a == "W4A8_NVFP4_FP8" ? InputQuant::e4m3_static : InputQuant::e2m1_group16;
    return with_input_scale(p, std::move(m));
  }

  Result<QuantizedMatrix> with_input_scale(const std::string& p, QuantizedMatrix m) const {
    if (tensors_.has(p + ".input_scale")) {
      PINION_TRY(m.input_scale, tensors_.scalar(p + ".input_scale"));
    } else if (m.scheme.input == InputQuant::e4m3_static || m.scheme.input == InputQuant::int8_static) {
      m.scheme.input = InputQuant::none;
    }
    return m;
  }

  Result<QuantizedMatrix> read_int4(const std::string& weight, const std::string& scale, int32_t group) const {
    PINION_TRY(const TensorRef packed, tensors_.get(weight, DType::u8, 2));
    QuantizedMatrix m{.scheme = {.bits = 4, .block_cols = group}, .rows = packed.shape[0] * 2, .cols = packed.shape[1]};
    if (m.cols % group != 0) {
      return tensors_.wrong(weight, fmt::format("has rows of {}, which groups of {} do not divide", m.cols, group));
    }
    m.codes.resize(m.rows * m.cols);
    for (int64_t n = 0; n < m.rows; ++n) {
      const std::byte* row = packed.data.data() + n / 2 * m.cols;
      for (int64_t k = 0; k < m.cols; ++k) {
        const int nibble = static_cast<uint8_t>(row[k]) >> (n % 2 * 4) & 15;
        m.codes[n * m.cols + k] = static_cast<uint8_t>(nibble < 8 ? nibble : nibble - 16);
      }
    }
    PINION_TRY(m.scales, tensors_.floats(scale, m.rows * m.scale_cols()));
    return m;
  }

  QuantTensors tensors_;
};

Result<Algorithm> read_algorithm(const ConfigReader& config) {
  Algorithm out;
  PINION_TRY(out.name, config.require_string("quant_algo"));
  PINION_TRY(const int64_t group, config.int_or("group_size", 0, {0, 1 << 20}));
  out.group = static_cast<int32_t>(group);
  const std::string padded = fmt::format(", {},", kAlgorithms);
  if (out.name != "MIXED_PRECISION" && padded.find(fmt::format(", {},", out.name)) == std::string::npos) {
    return config.error("quant_algo", fmt::format("\"{}\" is not supported", out.name),
                        fmt::format("supported: {}, MIXED_PRECISION", kAlgorithms));
  }
  PINION_TRY(const bool zeros, config.bool_or("has_zero_point", false));
  if (zeros) return config.error("has_zero_point", "zero points are not supported");
  return out;
}

}  // namespace

SourceResult open_modelopt(const Checkpoint& checkpoint, const ConfigReader& config) {
  PINION_TRY(const auto inner, config.find_section("quantization"));
  const ConfigReader& c = inner ? *inner : config;
  PINION_TRY(Algorithm algorithm, read_algorithm(c));
  auto source = std::make_unique<ModelOptSource>(checkpoint);
  if (algorithm.name != "MIXED_PRECISION") {
    if (algorithm.group == 0) {  // config.json's form has it inside its group
      if (const Json* groups = c.find("config_groups"); groups != nullptr && groups->is_object()) {
        for (const auto& [name, group] : groups->items()) {
          if (!group.is_object() || !group.contains("weights") || !group["weights"].is_object()) continue;
          const ConfigReader weights(group["weights"], c.where(), fmt::format("config_groups.{}.weights.", name));
          PINION_TRY(const int64_t size, weights.int_or("group_size", 0, {0, 1 << 20}));
          algorithm.group = static_cast<int32_t>(size);
        }
      }
    }
    source->all = algorithm;
    return std::unique_ptr<QuantSource>(std::move(source));
  }
  PINION_TRY(const ConfigReader layers, c.require_section("quantized_layers"));
  for (const auto& [name, layer] : layers.json().items()) {
    if (!layer.is_object()) return layers.error(name, "must be an object");
    PINION_TRY(source->by_layer[name], read_algorithm(ConfigReader(layer, c.where(), name + ".")));
    if (source->by_layer[name].name == "MIXED_PRECISION") return layers.error(name, "mixes nothing: it is one layer");
  }
  return std::unique_ptr<QuantSource>(std::move(source));
}

}  // namespace pinion
