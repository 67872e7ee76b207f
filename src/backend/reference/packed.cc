#include "backend/reference/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/number_formats.h"
#include "tensor/convert.h"

namespace pinion::reference {

float weight_at(const WeightView& w, int64_t row, int64_t col) {
  if (w.layout != Layout::packed) return load_f32(w.data, w.dtype, row * w.cols + col);
  const RowLayout l = w.row_layout();
  const auto* data = static_cast<const uint8_t*>(w.data);
  const auto float_at = [&](int64_t offset, int64_t i) {
    float v;
    std::memcpy(&v, data + offset + i * 4, sizeof v);
    return v;
  };
  if (l.ordered) {
    int32_t place;
    std::memcpy(&place, data + l.order_offset() + col * 4, sizeof place);
    check(place >= 0 && place < l.cols, "the order of a packed weight's columns lies within its row");
    col = place;
  }
  const uint8_t* codes = data + row * l.code_row_bytes();
  const uint8_t nibble = static_cast<uint8_t>(codes[nibble_byte(col)] >> nibble_shift(col)) & 15;
  const int64_t group = row * l.groups() + (l.group ? col / l.group : 0);
  const float zero = l.zeros ? static_cast<float>(static_cast<int8_t>(data[l.zeros_offset() + group])) : 0.0f;
  const auto integer = [&](float code) {
    const float v = (code - zero) * float_at(l.scales_offset(), group);
    return l.offsets ? v - float_at(l.offsets_offset(), group) : v;
  };
  switch (l.kind) {
    case PackedKind::fp8:
      return e4m3_to_f32(codes[col]) * float_at(l.scales_offset(), group);
    case PackedKind::int8:
      return integer(static_cast<int8_t>(codes[col]));
    case PackedKind::int4:
      return integer(static_cast<float>(nibble) - 8);
    case PackedKind::nvfp4:
      return e2m1_to_f32(nibble) * (e4m3_to_f32(data[l.scales_offset() + group]) * float_at(l.factors_offset(), row));
    case PackedKind::mxfp4:
      return e2m1_to_f32(nibble) * e8m0_to_f32(data[l.scales_offset() + group]);
    case PackedKind::none:
      break;
  }
  check(false, "a packed weight has a kind");
  return 0;
}

namespace {

// n numbers that share a scale; `fixed` 0: their own.
void round_group(InputRounding inputs, float fixed, const float* x, int64_t n, float* out) {
  const float largest = is_int8(inputs) ? 127.0f : kE4m3Max;
  float absmax = 0;
  for (int64_t i = 0; i < n; ++i) absmax = std::max(absmax, std::fabs(x[i]));
  float inverse = 1 / fixed, scale = fixed;
  if (!is_static(inputs)) {
    inverse = absmax > 1e-30f ? largest / absmax : 0.0f;
    scale = absmax > 1e-30f ? absmax / largest : 1.0f;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float v = x[i] * inverse;
    out[i] = scale * (is_int8(inputs) ? std::clamp(std::nearbyint(v), -128.0f, 127.0f) : e4m3_to_f32(f32_to_e4m3(v)));
  }
}

}  // namespace

const float* round_inputs(const Packing& packing, const float* x, int64_t rows, int64_t cols,
                          std::vector<float>& buffer) {
  if (packing.inputs == InputRounding::none) return x;
  buffer.resize(rows * cols);
  const int64_t group = packing.inputs == InputRounding::fp8_group128 ? 128 : cols;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < cols; k += group) {
      const int64_t at = row * cols + k;
      round_group(packing.inputs, packing.input_scale, x + at, std::min(group, cols - k), buffer.data() + at);
    }
  }
  return buffer.data();
}

}  // namespace pinion::reference
