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
  const uint8_t* codes = data + row * l.code_row_bytes();
  const uint8_t nibble = static_cast<uint8_t>(codes[nibble_byte(col)] >> nibble_shift(col)) & 15;
  const int64_t group = row * l.groups() + (l.group ? col / l.group : 0);
  const float zero = l.zeros ? static_cast<float>(static_cast<int8_t>(data[l.zeros_offset() + group])) : 0.0f;
  switch (l.kind) {
    case PackedKind::fp8:
      return e4m3_to_f32(codes[col]) * float_at(l.scales_offset(), group);
    case PackedKind::int8:
      return (static_cast<float>(static_cast<int8_t>(codes[col])) - zero) * float_at(l.scales_offset(), group);
    case PackedKind::int4:
      return (static_cast<float>(nibble) - 8 - zero) * float_at(l.scales_offset(), group);
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

void round_inputs(const float* x, int64_t n, float* out) {
  float absmax = 0;
  for (int64_t i = 0; i < n; ++i) absmax = std::max(absmax, std::fabs(x[i]));
  const float inverse = absmax > 1e-30f ? 127.0f / absmax : 0.0f, scale = absmax > 1e-30f ? absmax / 127.0f : 1.0f;
  for (int64_t i = 0; i < n; ++i) out[i] = std::nearbyint(x[i] * inverse) * scale;
}

}  // namespace pinion::reference
