// MXFP4 as gpt-oss ships it: experts' X_blocks U8 [E, rows, K/32, 16] (low nibble first) with X_scales U8 [E, rows,
// K/32]. The prefix is X ("…mlp.experts.gate_up_proj"); the experts come as one matrix of E * rows rows.
#include "quant/number_formats.h"
#include "quant/sources/sources.h"
#include "quant/sources/tensors.h"

namespace pinion {
namespace {

class Mxfp4Source : public QuantSource {
 public:
  explicit Mxfp4Source(const Checkpoint& checkpoint) : tensors_(checkpoint) {}
  std::string_view name() const override { return "MXFP4"; }

  Result<std::optional<QuantizedMatrix>> read(std::string_view prefix) const override {
    const std::string blocks = std::string(prefix) + "_blocks", scales = std::string(prefix) + "_scales";
    if (!tensors_.has(blocks)) return std::optional<QuantizedMatrix>();
    PINION_TRY(const TensorRef packed, tensors_.get(blocks, DType::u8, 4));
    if (packed.shape[3] != 16) return tensors_.wrong(blocks, "does not hold blocks of 16 bytes");
    const int64_t rows = packed.shape[0] * packed.shape[1], groups = packed.shape[2];
    PINION_TRY(const auto exponents,
               tensors_.bytes(scales, DType::u8, Shape{packed.shape[0], packed.shape[1], groups}));
    QuantizedMatrix m{
        .scheme = {.code = CodeType::e2m1, .bits = 4, .block_cols = 32}, .rows = rows, .cols = groups * 32};
    m.codes.resize(rows * m.cols);
    for (int64_t i = 0; i < rows * groups * 16; ++i) {
      const auto byte = static_cast<uint8_t>(packed.data[i]);
      m.codes[2 * i] = byte & 15;
      m.codes[2 * i + 1] = byte >> 4;
    }
    for (const uint8_t e : exponents) m.scales.push_back(e8m0_to_f32(e));
    return std::optional(std::move(m));
  }

 private:
  QuantTensors tensors_;
};

}  // namespace

SourceResult open_mxfp4(const Checkpoint& checkpoint, const ConfigReader&) {
  return std::unique_ptr<QuantSource>(std::make_unique<Mxfp4Source>(checkpoint));
}

}  // namespace pinion
