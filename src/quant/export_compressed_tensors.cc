#include "quant/export_compressed_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/number_formats.h"

namespace pinion {
namespace {

template <class T>
std::vector<std::byte> bytes_of(std::span<const T> values) {
  const auto bytes = std::as_bytes(values);
  return {bytes.begin(), bytes.end()};
}

// Element i at bit i * bits of the words `stride` apart, as sources/tensors.h reads it.
void put_bits(std::vector<int32_t>& words, int64_t first, int64_t stride, int64_t i, int bits, uint32_t value) {
  const int64_t bit = i * bits, word = first + bit / 32 * stride;
  const int shift = static_cast<int>(bit % 32);
  const auto add = [&](int64_t at, uint32_t v) {
    words[at] = static_cast<int32_t>(static_cast<uint32_t>(words[at]) | v);
  };
  add(word, value << shift);
  if (shift + bits > 32) add(word + stride, value >> (32 - shift));
}

bool is_integer_8bit_with_inputs(const Scheme& s) {
  return s.code == CodeType::integer && s.bits == 8 && s.input != InputQuant::none && !s.zero_points;
}

ExportedTensor float_tensor(std::string name, std::vector<int64_t> shape, std::span<const float> values) {
  return {std::move(name), DType::f32, std::move(shape), bytes_of(values)};
}

void export_words(const std::string& prefix, const QuantizedMatrix& m, std::vector<ExportedTensor>& out) {
  const int bits = m.scheme.bits, middle = 1 << (bits - 1);
  const int64_t row_words = (m.cols * bits + 31) / 32;
  std::vector<int32_t> words(m.rows * row_words);
  const uint32_t mask = (1u << bits) - 1;
  for (int64_t n = 0; n < m.rows; ++n) {
    for (int64_t k = 0; k < m.cols; ++k) {
      const int q = static_cast<int8_t>(m.codes[n * m.cols + k]) + middle;
      put_bits(words, n * row_words, 1, k, bits, static_cast<uint32_t>(q) & mask);
    }
  }
  const std::vector<int64_t> shape{m.rows, m.cols};
  out.push_back({prefix + ".weight_packed", DType::i32, {m.rows, row_words}, bytes_of<int32_t>(words)});
  out.push_back({prefix + ".weight_shape", DType::i64, {2}, bytes_of<int64_t>(shape)});
  out.push_back(float_tensor(prefix + ".weight_scale", {m.scale_rows(), m.scale_cols()}, m.scales));
  if (m.scheme.zero_points) {
    const int64_t groups = m.scale_cols();
    std::vector<int32_t> zeros((m.rows * bits + 31) / 32 * groups);
    for (int64_t n = 0; n < m.rows; ++n) {
      for (int64_t g = 0; g < groups; ++g) {
        put_bits(zeros, g, groups, n, bits, static_cast<uint32_t>(m.zeros[n * groups + g] + middle) & mask);
      }
    }
    out.push_back(
        {prefix + ".weight_zero_point", DType::i32, {(m.rows * bits + 31) / 32, groups}, bytes_of<int32_t>(zeros)});
  }
  if (!m.column_group.empty()) {
    out.push_back({prefix + ".weight_g_idx", DType::i32, {m.cols}, bytes_of<int32_t>(m.column_group)});
  }
}

void export_fp4(const std::string& prefix, const QuantizedMatrix& m, std::vector<ExportedTensor>& out) {
  std::vector<std::byte> packed(m.rows * m.cols / 2);
  for (size_t i = 0; i < packed.size(); ++i) {
    packed[i] = static_cast<std::byte>(m.codes[2 * i] | m.codes[2 * i + 1] << 4);
  }
  out.push_back({prefix + ".weight_packed", DType::u8, {m.rows, m.cols / 2}, std::move(packed)});
  const bool nvfp4 = m.scheme.block_cols == 16;
  std::vector<std::byte> scales;
  for (const float s : m.scales) {
    scales.push_back(static_cast<std::byte>(nvfp4 ? f32_to_e4m3(s) : static_cast<uint8_t>(std::ilogb(s) + 127)));
  }
  out.push_back({prefix + ".weight_scale", nvfp4 ? DType::f8_e4m3 : DType::u8, {m.rows, m.scale_cols()}, scales});
  if (nvfp4) {
    const float global = 1 / m.tensor_scale;  // compressed-tensors keeps the reciprocal
    out.push_back(float_tensor(prefix + ".weight_global_scale", {1}, std::span(&global, 1)));
  }
}

Json arguments(std::string_view type, int bits, std::string_view strategy, bool symmetric) {
  return {{"type", type}, {"num_bits", bits}, {"strategy", strategy}, {"symmetric", symmetric}, {"dynamic", false}};
}

Json input_arguments(InputQuant input) {
  switch (input) {
    case InputQuant::none:
      return nullptr;
    case InputQuant::e4m3_static:
      return arguments("float", 8, "tensor", true);
    case InputQuant::int8_static:
      return arguments("int", 8, "tensor", true);
    default:
      break;
  }
  Json out = input == InputQuant::int8_token     ? arguments("int", 8, "token", true)
             : input == InputQuant::e2m1_group16 ? arguments("float", 4, "tensor_group", true)
             : input == InputQuant::e4m3_token   ? arguments("float", 8, "token", true)
                                                 : arguments("float", 8, "group", true);
  out["dynamic"] = true;
  if (input == InputQuant::e4m3_token_group128) out["group_size"] = 128;
  if (input == InputQuant::e2m1_group16) out["group_size"] = 16;
  return out;
}

std::string_view format_of(const Scheme& s) {
  if (s.code == CodeType::e4m3) return "float-quantized";
  if (s.code == CodeType::e2m1) return s.block_cols == 16 ? "nvfp4-pack-quantized" : "mxfp4-pack-quantized";
  return is_integer_8bit_with_inputs(s) ? "int-quantized" : "pack-quantized";
}

}  // namespace

Result<std::vector<ExportedTensor>> export_compressed_tensors(const std::string& prefix, const QuantizedMatrix& m) {
  if (!m.input_multiplier.empty()) {
    return fail(Errc::unsupported, "compressed-tensors has no input multipliers", prefix,
                "fold them into the layer before");
  }
  std::vector<ExportedTensor> out;
  if (m.scheme.code == CodeType::e2m1) {
    export_fp4(prefix, m, out);
  } else if (m.scheme.code == CodeType::integer && !is_integer_8bit_with_inputs(m.scheme)) {
    export_words(prefix, m, out);
  } else {
    const DType type = m.scheme.code == CodeType::e4m3 ? DType::f8_e4m3 : DType::i8;
    out.push_back({prefix + ".weight", type, {m.rows, m.cols}, bytes_of<uint8_t>(m.codes)});
    const std::vector<int64_t> shape =
        m.scales.size() == 1 ? std::vector<int64_t>{1} : std::vector<int64_t>{m.scale_rows(), m.scale_cols()};
    out.push_back(float_tensor(prefix + ".weight_scale", shape, m.scales));
  }
  if (m.input_scale > 0) out.push_back(float_tensor(prefix + ".input_scale", {1}, std::span(&m.input_scale, 1)));
  return out;
}

namespace {

Json group_json(const Scheme& s, const Json& targets) {
  const bool block = s.block_rows > 1 && s.block_cols > 0;
  const std::string_view strategy = s.code == CodeType::e2m1 && s.block_cols == 16 ? "tensor_group"
                                    : block                                        ? "block"
                                    : s.block_cols > 0                             ? "group"
                                    : s.block_rows > 0                             ? "channel"
                                                                                   : "tensor";
  Json weights = arguments(s.code == CodeType::integer ? "int" : "float", s.bits, strategy, !s.zero_points);
  if (block) weights["block_structure"] = {s.block_rows, s.block_cols};
  if (!block && s.block_cols > 0) weights["group_size"] = s.block_cols;
  return {{"targets", targets},
          {"weights", weights},
          {"input_activations", input_arguments(s.input)},
          {"output_activations", nullptr},
          {"format", format_of(s)}};
}

}  // namespace

Json compressed_tensors_config(std::span<const SchemeGroup> groups, std::span<const std::string> ignored) {
  Json list = Json::object();
  for (size_t i = 0; i < groups.size(); ++i) {
    const Json targets = groups.size() == 1 ? Json{"Linear"} : Json(groups[i].modules);
    list[fmt::format("group_{}", i)] = group_json(groups[i].scheme, targets);
  }
  const std::string_view format = groups.size() == 1 ? format_of(groups[0].scheme) : "mixed-precision";
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"quantization_status", "compressed"},
          {"config_groups", list},
          {"ignore", ignored},
          {"kv_cache_scheme", nullptr}};
}

}  // namespace pinion
