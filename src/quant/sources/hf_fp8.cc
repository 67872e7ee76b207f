// Three checkpoints with e4m3 weights: DeepSeek's blocks (X.weight with X.weight_scale_inv, which is multiplied despite
// its name), AutoFP8's per tensor (X.weight_scale, X.input_scale), and fbgemm's per channel.
#include <fmt/format.h>

#include "quant/sources/dense_codes.h"
#include "quant/sources/sources.h"

namespace pinion {
namespace {

class Fp8Source : public QuantSource {
 public:
  Fp8Source(const Checkpoint& checkpoint, std::string_view name, int32_t block_rows, int32_t block_cols,
            InputQuant input)
      : tensors_(checkpoint), name_(name), block_rows_(block_rows), block_cols_(block_cols), input_(input) {}
  std::string_view name() const override { return name_; }

  Result<std::optional<QuantizedMatrix>> read(std::string_view prefix) const override {
    const std::string p(prefix);
    if (!tensors_.has_dtype(p + ".weight", DType::f8_e4m3)) return std::optional<QuantizedMatrix>();
    const std::string scale = p + (block_cols_ > 0 ? ".weight_scale_inv" : ".weight_scale");
    PINION_TRY(QuantizedMatrix m, read_8bit(tensors_, p + ".weight", scale, block_rows_, block_cols_));
    m.scheme.input = input_;
    if (input_ == InputQuant::e4m3_static) {
      PINION_TRY(m.input_scale, tensors_.scalar(p + ".input_scale"));
    }
    return std::optional(std::move(m));
  }

 private:
  QuantTensors tensors_;
  std::string_view name_;
  int32_t block_rows_, block_cols_;
  InputQuant input_;
};

}  // namespace

SourceResult open_hf_fp8(const Checkpoint& checkpoint, const ConfigReader& config) {
  PINION_TRY(const std::string number, config.string_or("fmt", "e4m3"));
  if (number != "e4m3") return config.error("fmt", fmt::format("\"{}\" is not supported", number), "supported: e4m3");
  PINION_TRY(const std::string inputs, config.string_or("activation_scheme", "dynamic"));
  if (inputs != "dynamic" && inputs != "static") {
    return config.error("activation_scheme", fmt::format("\"{}\" is not supported", inputs),
                        "supported: dynamic, static");
  }
  PINION_TRY(const auto block, config.find_ints("weight_block_size", {1, 1 << 20}));
  if (block && block->size() != 2) return config.error("weight_block_size", "must have two numbers");
  if (block) {
    const auto rows = static_cast<int32_t>((*block)[0]), cols = static_cast<int32_t>((*block)[1]);
    return std::unique_ptr<QuantSource>(
        std::make_unique<Fp8Source>(checkpoint, "fp8", rows, cols, InputQuant::e4m3_token_group128));
  }
  const InputQuant input = inputs == "static" ? InputQuant::e4m3_static : InputQuant::e4m3_token;
  return std::unique_ptr<QuantSource>(std::make_unique<Fp8Source>(checkpoint, "fp8", 0, 0, input));
}

SourceResult open_fbgemm_fp8(const Checkpoint& checkpoint, const ConfigReader&) {
  return std::unique_ptr<QuantSource>(
      std::make_unique<Fp8Source>(checkpoint, "fbgemm fp8", 0, 0, InputQuant::e4m3_token));
}

}  // namespace pinion
