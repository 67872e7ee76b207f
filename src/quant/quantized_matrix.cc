#include "quant/quantized_matrix.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "quant/number_formats.h"

namespace pinion {
namespace {

std::array<float, 256> make_values(CodeType type) {
  std::array<float, 256> out{};
  for (int i = 0; i < 256; ++i) {
    const auto code = static_cast<uint8_t>(i);
    out[i] = type == CodeType::e4m3   ? e4m3_to_f32(code)
             : type == CodeType::e2m1 ? e2m1_to_f32(code)
                                      : static_cast<float>(static_cast<int8_t>(code));
  }
  return out;
}

const std::array<float, 256>& values_of(CodeType type) {
  static const std::array tables{make_values(CodeType::integer), make_values(CodeType::e4m3),
                                 make_values(CodeType::e2m1)};
  return tables[static_cast<size_t>(type)];
}

}  // namespace

float code_value(CodeType type, uint8_t code) {
  return values_of(type)[code];
}

std::string str(const Scheme& s) {
  const std::string number = s.code == CodeType::e4m3   ? "fp8 e4m3"
                             : s.code == CodeType::e2m1 ? "fp4 e2m1"
                                                        : fmt::format("int{}", s.bits);
  std::string block;
  if (s.block_rows == 0 && s.block_cols == 0)
    block = "per tensor";
  else if (s.block_rows == 1 && s.block_cols == 0)
    block = "per channel";
  else if (s.block_rows == 1)
    block = fmt::format("group {}", s.block_cols);
  else
    block = fmt::format("blocks {}x{}", s.block_rows, s.block_cols);
  constexpr std::array<std::string_view, 7> kInputs{"",
                                                    ", fp8 inputs (static)",
                                                    ", fp8 inputs (per token)",
                                                    ", fp8 inputs (per token and 128 columns)",
                                                    ", int8 inputs (static)",
                                                    ", int8 inputs (per token)",
                                                    ", fp4 inputs (per 16 columns)"};
  return fmt::format("{} {}{}{}", number, block, s.zero_points ? ", zero points" : "",
                     kInputs[static_cast<size_t>(s.input)]);
}

Status validate(const QuantizedMatrix& m, std::string_view where) {
  const Scheme& s = m.scheme;
  const size_t count = static_cast<size_t>(m.scale_rows() * m.scale_cols());
  if (m.codes.size() != static_cast<size_t>(m.rows * m.cols) || m.scales.size() != count ||
      m.zeros.size() != (s.zero_points ? count : 0) || (!m.offsets.empty() && m.offsets.size() != count) ||
      (!m.column_group.empty() && m.column_group.size() != static_cast<size_t>(m.cols)) ||
      (!m.input_multiplier.empty() && m.input_multiplier.size() != static_cast<size_t>(m.cols))) {
    return fail(Errc::corrupt, fmt::format("the parts of a quantised [{}, {}] do not fit each other", m.rows, m.cols),
                where);
  }
  // A scale of zero is what padded rows have; it makes them zero, which is harmless.
  const auto bad =
      std::ranges::find_if(m.scales, [&](float v) { return !std::isfinite(v) || (v < 0 && !m.signed_scales); });
  if (bad != m.scales.end()) {
    return fail(Errc::corrupt, fmt::format("the scale {} is {}", bad - m.scales.begin(), *bad), where,
                "scales are finite and not negative");
  }
  if (!std::isfinite(m.tensor_scale) || m.tensor_scale <= 0) {
    return fail(Errc::corrupt, fmt::format("the tensor's scale is {}", m.tensor_scale), where,
                "it must be finite and positive");
  }
  const bool fixed = s.input == InputQuant::e4m3_static || s.input == InputQuant::int8_static;
  if (!std::isfinite(m.input_scale) || m.input_scale < 0 || (fixed && m.input_scale == 0)) {
    return fail(Errc::corrupt, fmt::format("the input scale is {}", m.input_scale), where,
                "it must be finite and positive");
  }
  if (!std::ranges::all_of(m.offsets, [](float v) { return std::isfinite(v); })) {
    return fail(Errc::corrupt, "an offset is NaN or infinite", where);
  }
  if (!std::ranges::all_of(m.input_multiplier, [](float v) { return std::isfinite(v); })) {
    return fail(Errc::corrupt, "an input multiplier is NaN or infinite", where);
  }
  if (s.code == CodeType::integer && s.bits < 8) {
    const int low = -(1 << (s.bits - 1)), high = (1 << (s.bits - 1)) - 1;
    const auto fits = [&](int8_t v) { return v >= low && v <= high; };
    if (!std::ranges::all_of(m.codes, [&](uint8_t c) { return fits(static_cast<int8_t>(c)); }) ||
        !std::ranges::all_of(m.zeros, fits)) {
      return fail(Errc::corrupt, fmt::format("a code or zero point does not fit {} bits", s.bits), where);
    }
  }
  if (s.code == CodeType::e4m3 && std::ranges::any_of(m.codes, [](uint8_t c) { return (c & 0x7f) == 0x7f; })) {
    return fail(Errc::corrupt, "an fp8 weight is NaN", where);
  }
  if (s.code == CodeType::e2m1 && std::ranges::any_of(m.codes, [](uint8_t c) { return c > 15; })) {
    return fail(Errc::corrupt, "an fp4 code has more than 4 bits", where);
  }
  if (!std::ranges::all_of(m.column_group, [&](int32_t g) { return g >= 0 && g < m.scale_cols(); })) {
    return fail(Errc::corrupt, fmt::format("a column's group is not in 0 … {}", m.scale_cols() - 1), where);
  }
  return {};
}

void decode_rows(const QuantizedMatrix& m, int64_t first, int64_t last, std::span<float> out) {
  check(first >= 0 && last <= m.rows && out.size() == static_cast<size_t>((last - first) * m.cols),
        "decode_rows: the output holds the rows asked for");
  const std::array<float, 256>& value = values_of(m.scheme.code);
  const int64_t width = m.scheme.block_cols ? m.scheme.block_cols : m.cols;
  for (int64_t n = first; n < last; ++n) {
    const uint8_t* code = m.codes.data() + n * m.cols;
    float* to = out.data() + (n - first) * m.cols;
    const int64_t base = (m.scheme.block_rows ? n / m.scheme.block_rows : 0) * m.scale_cols();
    for (int64_t k0 = 0; k0 < m.cols; k0 += width) {
      const int64_t k1 = std::min(m.cols, k0 + width);
      for (int64_t k = k0; k < k1; ++k) {
        const int64_t g = base + (m.column_group.empty() ? k0 / width : m.column_group[k]);
        const float zero = m.zeros.empty() ? 0 : static_cast<float>(m.zeros[g]);
        to[k] = (value[code[k]] - zero) * (m.scales[g] * m.tensor_scale);
        if (!m.offsets.empty()) to[k] -= m.offsets[g];
      }
    }
    if (!m.input_multiplier.empty()) {
      for (int64_t k = 0; k < m.cols; ++k) to[k] *= m.input_multiplier[k];
    }
  }
}

std::vector<float> decode(const QuantizedMatrix& m) {
  std::vector<float> out(static_cast<size_t>(m.rows * m.cols));
  decode_rows(m, 0, m.rows, out);
  return out;
}

}  // namespace pinion
