#include "quant/packed.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "quant/number_formats.h"

namespace pinion {
namespace {

PackedKind kind_of(const Scheme& s) {
  if (s.code == CodeType::e4m3) return PackedKind::fp8;
  if (s.code == CodeType::e2m1) return s.block_cols == 16 ? PackedKind::nvfp4 : PackedKind::mxfp4;
  return s.bits == 8 ? PackedKind::int8 : PackedKind::int4;
}

// The stored nibble: integers with an offset of 8, so that unpacking them needs no sign extension.
uint8_t to_nibble(PackedKind kind, uint8_t code) {
  return kind == PackedKind::int4 ? static_cast<uint8_t>(code + 8) & 15 : code & 15;
}
uint8_t from_nibble(PackedKind kind, uint8_t nibble) {
  return kind == PackedKind::int4 ? static_cast<uint8_t>(nibble - 8) : nibble;
}

bool same_but_rows(RowLayout a, const RowLayout& b) {
  a.rows = b.rows;
  return a == b;
}

// The stored byte of a scale that is exactly of that type.
uint8_t scale_byte(PackedKind kind, float scale) {
  if (kind == PackedKind::nvfp4) return f32_to_e4m3(scale);
  return static_cast<uint8_t>(std::ilogb(scale) + 127);
}

void put_float(std::byte* to, float v) {
  std::memcpy(to, &v, sizeof v);
}
float get_float(const std::byte* from) {
  float v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Whether every group of an act-order has as many columns as the scheme says.
bool fills_groups(const QuantizedMatrix& m) {
  std::vector<int64_t> count(m.scale_cols());
  for (const int32_t g : m.column_group) ++count[g];
  return m.cols % m.scheme.block_cols == 0 &&
         std::ranges::all_of(count, [&](int64_t n) { return n == m.scheme.block_cols; });
}

// The column at each place: groups ascending, a group's columns ascending.
std::vector<int32_t> columns_in_order(const QuantizedMatrix& m) {
  std::vector<int32_t> columns(m.cols), next(m.scale_cols());
  for (size_t g = 0; g < next.size(); ++g) next[g] = static_cast<int32_t>(g) * m.scheme.block_cols;
  for (int64_t k = 0; k < m.cols; ++k) columns[next[m.column_group[k]]++] = static_cast<int32_t>(k);
  return columns;
}

}  // namespace

PackedPlan plan_packed(const Scheme& s, int64_t rows, int64_t cols) {
  PackedPlan out;
  const PackedKind kind = kind_of(s);
  const int32_t group = s.block_cols >= cols ? 0 : s.block_cols;
  if (s.code == CodeType::integer && s.bits != 8 && s.bits != 4) {
    out.why_not = fmt::format("{}-bit codes have no packed layout", s.bits);
  } else if (s.code == CodeType::e2m1 && s.block_cols != 16 && s.block_cols != 32) {
    out.why_not = fmt::format("fp4 has layouts for groups of 16 and 32, not {}", s.block_cols);
  } else if (s.code != CodeType::e2m1 && group % 32 != 0 && !(kind == PackedKind::int8 && group == 16)) {
    out.why_not = fmt::format("groups of {} columns do not fill units of 32", group);
  } else {
    // fp4 keeps its group even when it spans the row: the type of its scale depends on it.
    out.layout = {kind, rows, cols, s.code == CodeType::e2m1 ? s.block_cols : group, s.zero_points};
  }
  return out;
}

PackedPlan plan_packed(const QuantizedMatrix& m) {
  PackedPlan out = plan_packed(m.scheme, m.rows, m.cols);
  if (!out.why_not.empty()) return out;
  out.layout.offsets = !m.offsets.empty();
  out.layout.ordered = !m.column_group.empty() && out.layout.group > 0;
  if (out.layout.offsets && m.scheme.code != CodeType::integer) {
    out.why_not = "its groups have offsets, which only integers have";
  } else if (out.layout.ordered && !fills_groups(m)) {
    out.why_not = "the groups of an act-order have different sizes";
  } else if (!m.input_multiplier.empty()) {
    out.why_not = "the inputs have multipliers that are not folded into the layer before";
  } else if (out.layout.scale_bytes() == 1 && std::ranges::any_of(m.scales, [&](float v) {
               return out.layout.kind == PackedKind::nvfp4 ? e4m3_to_f32(f32_to_e4m3(v)) != v
                                                           : !(v > 0) || std::exp2(std::ilogb(v)) != v;
             })) {
    out.why_not = "a scale is not of the layout's 8-bit type";
  }
  if (!out.why_not.empty()) out.layout = {};
  return out;
}

void pack_row(const QuantizedMatrix& m, int64_t row, const RowLayout& layout, int64_t to, std::span<std::byte> out) {
  const int64_t row_bytes = layout.code_row_bytes(), groups = layout.groups(), padded = (m.cols + 31) / 32 * 32;
  std::byte* codes = out.data() + to * row_bytes;
  const uint8_t* from = m.codes.data() + row * m.cols;
  std::vector<uint8_t> moved;
  if (layout.ordered) {
    const std::vector<int32_t> columns = columns_in_order(m);
    for (const int32_t k : columns) moved.push_back(from[k]);
    from = moved.data();
  }
  if (layout.code_bits() == 8) {
    std::memcpy(codes, from, m.cols);
    std::fill(codes + m.cols, codes + padded, std::byte{0});
  } else {
    std::fill(codes, codes + row_bytes, std::byte{0});
    for (int64_t k = 0; k < padded; ++k) {
      const uint8_t nibble = to_nibble(layout.kind, k < m.cols ? from[k] : 0);
      codes[nibble_byte(k)] |= static_cast<std::byte>(nibble << nibble_shift(k));
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = (m.scheme.block_rows ? row / m.scheme.block_rows : 0) * m.scale_cols();
    const int64_t source = layout.ordered ? first + g : m.scale_index(row, g * layout.group), at = to * groups + g;
    if (layout.scale_bytes() == 1) {
      out[layout.scales_offset() + at] = static_cast<std::byte>(scale_byte(layout.kind, m.scales[source]));
    } else {
      put_float(out.data() + layout.scales_offset() + at * 4, m.scales[source] * m.tensor_scale);
    }
    if (layout.zeros) out[layout.zeros_offset() + at] = static_cast<std::byte>(m.zeros[source]);
    if (layout.offsets) put_float(out.data() + layout.offsets_offset() + at * 4, m.offsets[source]);
  }
  if (layout.kind == PackedKind::nvfp4) put_float(out.data() + layout.factors_offset() + to * 4, m.tensor_scale);
}

void pack_rows(const QuantizedMatrix& m, const RowLayout& layout, int64_t first, int64_t step,
               std::span<std::byte> out) {
  check(out.size() == static_cast<size_t>(layout.bytes()), "pack_rows: the output has the layout's size");
  check(same_but_rows(plan_packed(m).layout, layout), "pack_rows: the matrix has this layout");
  check(first + (m.rows - 1) * step < layout.rows, "pack_rows: the rows exist");
  for (int64_t r = 0; r < m.rows; ++r) pack_row(m, r, layout, first + r * step, out);
  pack_order(m, layout, out);
}

void pack_order(const QuantizedMatrix& m, const RowLayout& layout, std::span<std::byte> out) {
  if (!layout.ordered) return;
  const std::vector<int32_t> columns = columns_in_order(m);
  for (size_t place = 0; place < columns.size(); ++place) {
    const auto at = static_cast<int32_t>(place);
    std::memcpy(out.data() + layout.order_offset() + columns[place] * int64_t{4}, &at, sizeof at);
  }
}

std::vector<std::byte> pack(const QuantizedMatrix& m) {
  const RowLayout layout = plan_packed(m).layout;
  std::vector<std::byte> out(static_cast<size_t>(layout.bytes()));
  pack_rows(m, layout, 0, 1, out);
  return out;
}

namespace {

// Where column k of the matrix lies in its row.
int64_t place_of(const RowLayout& layout, std::span<const std::byte> packed, int64_t k) {
  if (!layout.ordered) return k;
  int32_t place;
  std::memcpy(&place, packed.data() + layout.order_offset() + k * 4, sizeof place);
  check(place >= 0 && place < layout.cols, "the order of a packed matrix's columns lies within its row");
  return place;
}

uint8_t packed_code(const RowLayout& layout, const std::byte* row, int64_t k) {
  if (layout.code_bits() == 8) return static_cast<uint8_t>(row[k]);
  const auto nibble = static_cast<uint8_t>(static_cast<uint8_t>(row[nibble_byte(k)]) >> nibble_shift(k)) & 15;
  return from_nibble(layout.kind, static_cast<uint8_t>(nibble));
}

float packed_scale(const RowLayout& layout, std::span<const std::byte> packed, int64_t index) {
  const std::byte* at = packed.data() + layout.scales_offset();
  if (layout.kind == PackedKind::nvfp4) return e4m3_to_f32(static_cast<uint8_t>(at[index]));
  if (layout.kind == PackedKind::mxfp4) return e8m0_to_f32(static_cast<uint8_t>(at[index]));
  return get_float(at + index * 4);
}

CodeType code_type(PackedKind kind) {
  if (kind == PackedKind::fp8) return CodeType::e4m3;
  return kind == PackedKind::nvfp4 || kind == PackedKind::mxfp4 ? CodeType::e2m1 : CodeType::integer;
}

}  // namespace

QuantizedMatrix unpack(const RowLayout& layout, std::span<const std::byte> packed) {
  check(packed.size() == static_cast<size_t>(layout.bytes()), "unpack: the input has the layout's size");
  QuantizedMatrix m;
  m.scheme = {.code = code_type(layout.kind),
              .bits = static_cast<int8_t>(layout.code_bits()),
              .block_rows = 1,
              .block_cols = layout.group,
              .zero_points = layout.zeros};
  m.rows = layout.rows;
  m.cols = layout.cols;
  m.codes.resize(m.rows * m.cols);
  for (int64_t n = 0; n < m.rows; ++n) {
    const std::byte* row = packed.data() + n * layout.code_row_bytes();
    for (int64_t k = 0; k < m.cols; ++k) {
      m.codes[n * m.cols + k] = packed_code(layout, row, place_of(layout, packed, k));
    }
  }
  for (int64_t k = 0; layout.ordered && k < m.cols; ++k) {
    m.column_group.push_back(static_cast<int32_t>(place_of(layout, packed, k) / layout.group));
  }
  const int64_t count = m.rows * layout.groups();
  for (int64_t i = 0; i < count; ++i) {
    m.scales.push_back(packed_scale(layout, packed, i));
    if (layout.zeros) m.zeros.push_back(static_cast<int8_t>(packed[layout.zeros_offset() + i]));
    if (layout.offsets) m.offsets.push_back(get_float(packed.data() + layout.offsets_offset() + i * 4));
  }
  if (layout.kind == PackedKind::nvfp4) {
    // Stacked parts may have different factors, which one matrix cannot say; they go into the scales then.
    m.tensor_scale = get_float(packed.data() + layout.factors_offset());
    for (int64_t n = 0; n < m.rows; ++n) {
      const float ratio = get_float(packed.data() + layout.factors_offset() + n * 4) / m.tensor_scale;
      for (int64_t g = 0; g < layout.groups() && ratio != 1; ++g) m.scales[n * layout.groups() + g] *= ratio;
    }
  }
  return m;
}

void decode_packed(const RowLayout& layout, std::span<const std::byte> packed, int64_t first, int64_t last,
                   std::span<float> out) {
  check(first >= 0 && last <= layout.rows && out.size() == static_cast<size_t>((last - first) * layout.cols),
        "decode_packed: the output holds the rows asked for");
  const CodeType type = code_type(layout.kind);
  const int64_t width = layout.group ? layout.group : layout.cols;
  for (int64_t n = first; n < last; ++n) {
    const std::byte* row = packed.data() + n * layout.code_row_bytes();
    const float factor =
        layout.kind == PackedKind::nvfp4 ? get_float(packed.data() + layout.factors_offset() + n * 4) : 1;
    float* to = out.data() + (n - first) * layout.cols;
    for (int64_t k = 0; k < layout.cols; ++k) {
      const int64_t place = place_of(layout, packed, k), g = n * layout.groups() + place / width;
      const float zero =
          layout.zeros ? static_cast<float>(static_cast<int8_t>(packed[layout.zeros_offset() + g])) : 0.0f;
      to[k] = (code_value(type, packed_code(layout, row, place)) - zero) * (packed_scale(layout, packed, g) * factor);
      if (layout.offsets) to[k] -= get_float(packed.data() + layout.offsets_offset() + g * 4);
    }
  }
}

}  // namespace pinion
