// How a packed quantised matrix lies in memory: codes, scales and zero points in sections of their own, each with one
// entry per weight row, so that rows can be stacked, interleaved and sharded by copying. Plain data and constexpr
// arithmetic: kernels on every device include this.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pinion {

enum class PackedKind : uint8_t {
  none,
  fp8,    // e4m3 codes; f32 scale per row, or per row and group
  int8,   // int8 codes; f32 scale, int8 zero point and f32 offset where there are any
  int4,   // nibbles; f32 scale, int8 zero point and f32 offset where there are any
  nvfp4,  // e2m1 nibbles; e4m3 scale per 16, times one f32 per row
  mxfp4,  // e2m1 nibbles; e8m0 scale per 32
};

inline constexpr std::array<std::string_view, 6> kPackedKindNames{"none", "fp8", "int8", "int4", "nvfp4", "mxfp4"};
constexpr std::string_view name(PackedKind kind) {
  return kPackedKindNames[static_cast<size_t>(kind)];
}

// What a linear rounds its inputs to before the product, and back: a row's scale is its absmax over the type's largest
// number (fp8_group128: that of each 128 columns), a static one is the checkpoint's for all rows.
enum class InputRounding : uint8_t { none, int8_token, int8_static, fp8_token, fp8_static, fp8_group128 };

inline constexpr std::array<std::string_view, 6> kInputRoundingNames{"none",      "int8_token", "int8_static",
                                                                     "fp8_token", "fp8_static", "fp8_group128"};
constexpr std::string_view name(InputRounding inputs) {
  return kInputRoundingNames[static_cast<size_t>(inputs)];
}
constexpr bool is_int8(InputRounding inputs) {
  return inputs == InputRounding::int8_token || inputs == InputRounding::int8_static;
}
constexpr bool is_static(InputRounding inputs) {
  return inputs == InputRounding::int8_static || inputs == InputRounding::fp8_static;
}

// Sections in this order, each on a 64-byte boundary: codes [rows][code_row_bytes], scales [rows][groups], zeros
// [rows][groups] (int8), offsets [rows][groups] (f32), factors [rows] (f32), order [cols] (int32). Every row of codes
// fills whole units of 32 elements, so that kernels read them without a tail; the elements past cols hold the code of
// zero. An element is (code - zero) * scale - offset. Column c lies at place order[c] of its row, where there is an
// order.
struct RowLayout {
  PackedKind kind = PackedKind::none;
  int64_t rows = 0, cols = 0;
  int32_t group = 0;  // columns that share a scale; 0: the whole row. Else 16 (nvfp4, int8) or a multiple of 32
  bool zeros = false;
  bool offsets = false;  // of GGUF's K-quants
  bool ordered = false;  // GPTQ's act-order: the columns of a group are no neighbours in the matrix

  static constexpr int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  constexpr int code_bits() const { return kind == PackedKind::fp8 || kind == PackedKind::int8 ? 8 : 4; }
  constexpr int scale_bytes() const { return kind == PackedKind::nvfp4 || kind == PackedKind::mxfp4 ? 1 : 4; }
  constexpr int64_t groups() const { return group ? (cols + group - 1) / group : 1; }
  constexpr int64_t code_row_bytes() const { return (cols + 31) / 32 * 32 * code_bits() / 8; }
  constexpr int64_t scales_offset() const { return align(rows * code_row_bytes()); }
  constexpr int64_t zeros_offset() const { return scales_offset() + align(rows * groups() * scale_bytes()); }
  constexpr int64_t offsets_offset() const { return zeros_offset() + (zeros ? align(rows * groups()) : 0); }
  constexpr int64_t factors_offset() const { return offsets_offset() + (offsets ? align(rows * groups() * 4) : 0); }
  constexpr int64_t order_offset() const {
    return factors_offset() + (kind == PackedKind::nvfp4 ? align(rows * static_cast<int64_t>(sizeof(float))) : 0);
  }
  constexpr int64_t bytes() const { return order_offset() + (ordered ? align(cols * 4) : 0); }
  bool operator==(const RowLayout&) const = default;
};

// What a weight's description says about its packing beside rows and columns.
struct Packing {
  PackedKind kind = PackedKind::none;
  int32_t group = 0;
  bool zeros = false, offsets = false, ordered = false;
  InputRounding inputs = InputRounding::none;
  float input_scale = 0;  // of static inputs: x is rounded to multiples of it (int8), or as e4m3(x / input_scale)
  constexpr RowLayout layout(int64_t rows, int64_t cols) const {
    return {kind, rows, cols, group, zeros, offsets, ordered};
  }
  // int8 by int8 with a scale per row each: the product is one of integers (W8A8).
  constexpr bool is_integer_product() const {
    return kind == PackedKind::int8 && group == 0 && !zeros && !offsets && is_int8(inputs);
  }
  bool operator==(const Packing&) const = default;
};

// Whether there is such a layout: a group fills units (of int8 also half of one), fp4 has its one, zero points and
// offsets belong to integers, an order to their groups, and static inputs have a scale.
constexpr bool is_sound(const Packing& p) {
  const bool fp4 = p.kind == PackedKind::nvfp4 || p.kind == PackedKind::mxfp4;
  const bool integer = p.kind == PackedKind::int8 || p.kind == PackedKind::int4;
  if (p.kind == PackedKind::none || p.group < 0 || ((p.zeros || p.offsets || p.ordered) && !integer)) return false;
  if (p.ordered && (p.group == 0 || p.inputs == InputRounding::fp8_group128)) return false;
  if (fp4) {
    if (p.group != (p.kind == PackedKind::nvfp4 ? 16 : 32)) return false;
  } else if (p.group % 32 != 0 && !(p.kind == PackedKind::int8 && p.group == 16)) {
    return false;
  }
  constexpr float kLargest = 1e30f, kLeast = 1e-30f;  // NaN is in no range
  return is_static(p.inputs) ? p.input_scale >= kLeast && p.input_scale <= kLargest : p.input_scale == 0;
}

// Nibbles: a unit of 32 elements is 16 bytes, element i in the low half of byte i, element 16 + i in its high half. So
// a 16-byte load, a mask and a shift give 32 codes in order.
constexpr int64_t nibble_byte(int64_t col) {
  return col / 32 * 16 + col % 16;
}
constexpr int nibble_shift(int64_t col) {
  return col % 32 < 16 ? 0 : 4;
}

}  // namespace pinion
