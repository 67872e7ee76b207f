// GPTQ (AutoGPTQ, GPTQModel): qweight I32 [K bits/32, N], a bit stream down each column; qzeros I32 [K/g, N bits/32], a
// stream along each row; scales [K/g, N]; g_idx I32 [K]. W = (q - z) s with z = stored + 1 in the first version of the
// format and z = stored in "gptq_v2".
#include <fmt/format.h>

#include <algorithm>

#include "quant/sources/sources.h"
#include "quant/sources/tensors.h"

namespace pinion {
namespace {

struct GptqConfig {
  int bits = 4;
  int64_t group = 128;
  bool act_order = false, second_version = false;
};

class GptqSource : public QuantSource {
 public:
  GptqSource(const Checkpoint& checkpoint, const GptqConfig& config) : tensors_(checkpoint), config_(config) {}
  std::string_view name() const override { return "GPTQ"; }

  Result<std::optional<QuantizedMatrix>> read(std::string_view prefix) const override {
    const std::string p(prefix);
    if (!tensors_.has(p + ".qweight")) return std::optional<QuantizedMatrix>();
    PINION_TRY(const TensorRef packed, tensors_.get(p + ".qweight", DType::i32, 2));
    const int bits = config_.bits;
    const int64_t n = packed.shape[1], k = packed.shape[0] * 32 / bits, group = config_.group > 0 ? config_.group : k;
    if (packed.shape[0] * 32 % bits != 0 || n * bits % 32 != 0 || k % group != 0) {
      return tensors_.wrong(p + ".qweight", fmt::format("has the shape {}, which {} bits in groups of {} do not give",
                                                        packed.shape.str(), bits, group));
    }
    const int64_t groups = k / group;
    PINION_TRY(const auto words, tensors_.ints(p + ".qweight", packed.shape));
    PINION_TRY(const auto scales, tensors_.floats(p + ".scales", groups * n));
    PINION_TRY(const auto zeros, tensors_.ints(p + ".qzeros", Shape{groups, n * bits / 32}));

    QuantizedMatrix m{
        .scheme = {.bits = static_cast<int8_t>(bits), .block_cols = static_cast<int32_t>(group), .zero_points = true},
        .rows = n,
        .cols = k};
    const uint32_t mask = (1u << bits) - 1;
    const int middle = 1 << (bits - 1);
    m.codes.resize(n * k);
    constexpr int64_t kRows = 64;  // written at a time, so that their lines stay in the cache
    for (int64_t first = 0; first < n; first += kRows) {
      for (int64_t col = 0; col < k; ++col) {
        for (int64_t row = first; row < std::min(n, first + kRows); ++row) {
          const uint32_t q = stream_bits(words.data() + row, n, col, bits);
          m.codes[row * k + col] = static_cast<uint8_t>(static_cast<int>(q) - middle);
        }
      }
    }
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        m.scales.push_back(scales[g * n + row]);
        const uint32_t stored = stream_bits(zeros.data() + g * (n * bits / 32), 1, row, bits);
        const uint32_t zero = config_.second_version ? stored : (stored + 1) & mask;
        m.zeros.push_back(static_cast<int8_t>(static_cast<int>(zero) - middle));
      }
    }
    if (std::ranges::all_of(m.zeros, [](int8_t z) { return z == 0; })) {  // symmetric: kernels need no zero points
      m.scheme.zero_points = false;
      m.zeros.clear();
    }
    if (tensors_.has(p + ".g_idx")) {
      PINION_TRY(m.column_group, tensors_.ints(p + ".g_idx", Shape{k}));
      bool in_order = true;
      for (int64_t col = 0; col < k; ++col) in_order = in_order && m.column_group[col] == col / group;
      if (in_order) m.column_group.clear();
    } else if (config_.act_order) {
      return tensors_.wrong(p + ".g_idx", "is missing, and desc_act needs it");
    }
    return std::optional(std::move(m));
  }

 private:
  QuantTensors tensors_;
  GptqConfig config_;
};

}  // namespace

SourceResult open_gptq(const Checkpoint& checkpoint, const ConfigReader& config) {
  GptqConfig c;
  PINION_TRY(const int64_t bits, config.int_or("bits", 4, {1, 64}));
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    return config.error("bits", fmt::format("GPTQ with {} bits is not supported", bits), "supported: 2, 3, 4, 8");
  }
  c.bits = static_cast<int>(bits);
  PINION_TRY(c.group, config.int_or("group_size", 128, {-1, 1 << 20}));
  if (c.group == 0) return config.error("group_size", "must not be 0");
  PINION_TRY(c.act_order, config.bool_or("desc_act", false));
  PINION_TRY(std::string format, config.string_or("checkpoint_format", "gptq"));
  PINION_TRY(format, config.string_or("format", format));
  if (format != "gptq" && format != "gptq_v2") {
    return config.error("checkpoint_format", fmt::format("the GPTQ layout \"{}\" is not supported", format),
                        "supported: gptq, gptq_v2");
  }
  c.second_version = format == "gptq_v2";
  PINION_TRY(const std::string words, config.string_or("pack_dtype", "int32"));
  if (words != "int32") return config.error("pack_dtype", fmt::format("\"{}\" is not supported", words), "int32 is");
  // "-:" leaves modules alone, which the tensors tell; anything else gives some modules another width.
  if (const Json* dynamic = config.find("dynamic"); dynamic != nullptr && dynamic->is_object()) {
    for (const auto& [pattern, unused] : dynamic->items()) {
      if (!pattern.starts_with("-:")) {
        return config.error("dynamic", fmt::format("settings of their own for \"{}\" are not supported", pattern));
      }
    }
  }
  return std::unique_ptr<QuantSource>(std::make_unique<GptqSource>(checkpoint, c));
}

}  // namespace pinion
