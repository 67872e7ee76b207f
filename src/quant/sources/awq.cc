// AutoAWQ: qweight I32 [K, N/8], eight output columns a word in the order 0 2 4 6 1 3 5 7; qzeros I32 [K/g, N/8] alike;
// scales F16 [K/g, N]. W = (q - z) s.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "quant/sources/sources.h"
#include "quant/sources/tensors.h"

namespace pinion {
namespace {

constexpr std::array<int, 8> kNibbleOfColumn{0, 4, 1, 5, 2, 6, 3, 7};

int8_t signed_code(uint32_t word, int64_t column) {
  return static_cast<int8_t>(static_cast<int>(word >> (4 * kNibbleOfColumn[column % 8]) & 15) - 8);
}

class AwqSource : public QuantSource {
 public:
  AwqSource(const Checkpoint& checkpoint, int64_t group, bool zero_points)
      : tensors_(checkpoint), group_(group), zero_points_(zero_points) {}
  std::string_view name() const override { return "AutoAWQ"; }

  Result<std::optional<QuantizedMatrix>> read(std::string_view prefix) const override {
    const std::string p(prefix);
    if (!tensors_.has(p + ".qweight")) return std::optional<QuantizedMatrix>();
    PINION_TRY(const TensorRef packed, tensors_.get(p + ".qweight", DType::i32, 2));
    const int64_t k = packed.shape[0], n = packed.shape[1] * 8, group = group_ > 0 ? group_ : k;
    if (k % group != 0) {
      return tensors_.wrong(p + ".qweight", fmt::format("has {} rows, which groups of {} do not divide", k, group));
    }
    const int64_t groups = k / group;
    PINION_TRY(const auto words, tensors_.ints(p + ".qweight", packed.shape));
    PINION_TRY(const auto scales, tensors_.floats(p + ".scales", groups * n));
    std::vector<int32_t> zeros;
    if (zero_points_) {
      PINION_TRY(zeros, tensors_.ints(p + ".qzeros", Shape{groups, n / 8}));
    }
    QuantizedMatrix m{.scheme = {.bits = 4, .block_cols = static_cast<int32_t>(group), .zero_points = zero_points_},
                      .rows = n,
                      .cols = k};
    m.codes.resize(n * k);
    constexpr int64_t kRows = 64;  // written at a time, so that their lines stay in the cache
    for (int64_t first = 0; first < n; first += kRows) {
      for (int64_t col = 0; col < k; ++col) {
        for (int64_t row = first; row < std::min(n, first + kRows); ++row) {
          m.codes[row * k + col] =
              static_cast<uint8_t>(signed_code(static_cast<uint32_t>(words[col * (n / 8) + row / 8]), row));
        }
      }
    }
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        m.scales.push_back(scales[g * n + row]);
        if (zero_points_) m.zeros.push_back(signed_code(static_cast<uint32_t>(zeros[g * (n / 8) + row / 8]), row));
      }
    }
    return std::optional(std::move(m));
  }

 private:
  QuantTensors tensors_;
  int64_t group_;
  bool zero_points_;
};

}  // namespace

SourceResult open_awq(const Checkpoint& checkpoint, const ConfigReader& config) {
  PINION_TRY(int64_t bits, config.int_or("w_bit", 4, {1, 64}));  // the older files' names first
  PINION_TRY(bits, config.int_or("bits", bits, {1, 64}));
  if (bits != 4) return config.error("bits", fmt::format("AWQ with {} bits is not supported", bits), "supported: 4");
  PINION_TRY(int64_t group, config.int_or("q_group_size", 128, {-1, 1 << 20}));
  PINION_TRY(group, config.int_or("group_size", group, {-1, 1 << 20}));
  if (group == 0) return config.error("group_size", "must not be 0");
  PINION_TRY(std::string version, config.string_or("version", "gemm"));
  PINION_TRY(version, config.string_or("format", version));
  std::ranges::transform(version, version.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
  if (version != "gemm") {
    return config.error("version", fmt::format("the AWQ layout \"{}\" is not supported", version), "supported: gemm");
  }
  PINION_TRY(const bool zero_points, config.bool_or("zero_point", true));
  return std::unique_ptr<QuantSource>(std::make_unique<AwqSource>(checkpoint, group, zero_points));
}

}  // namespace pinion
