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
  int8,   // int8 codes; f32 scale, int8 zero point where there are any
  int4,   // nibbles; f32 scale, int8 zero point where there are any
  nvfp4,  // e2m1 nibbles; e4m3 scale per 16, times one f32 per row
  mxfp4,  // e2m1 nibbles; e8m0 scale per 32
};

inline constexpr std::array<std::string_view, 6> kPackedKindNames{"none", "fp8", "int8", "int4", "nvfp4", "mxfp4"};
constexpr std::string_view name(PackedKind kind) {
  return kPackedKindNames[static_cast<size_t>(kind)];
}

// Sections in this order, each on a 64-byte boundary: codes [rows][code_row_bytes], scales [rows][groups], zeros
// [rows][groups] (int8), factors [rows] (f32). Every row of codes fills whole units of 32 elements, so that kernels
// read them without a tail; the elements past cols hold the code of zero.
struct RowLayout {
  PackedKind kind = PackedKind::none;
  int64_t rows = 0, cols = 0;
  int32_t group = 0;  // columns that share a scale; 0: the whole row. Else a multiple of 16 (nvfp4) or 32
  bool zeros = false;

  static constexpr int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  constexpr int code_bits() const { return kind == PackedKind::fp8 || kind == PackedKind::int8 ? 8 : 4; }
  constexpr int scale_bytes() const { return kind == PackedKind::nvfp4 || kind == PackedKind::mxfp4 ? 1 : 4; }
  constexpr int64_t groups() const { return group ? (cols + group - 1) / group : 1; }
  constexpr int64_t code_row_bytes() const { return (cols + 31) / 32 * 32 * code_bits() / 8; }
  constexpr int64_t scales_offset() const { return align(rows * code_row_bytes()); }
  constexpr int64_t zeros_offset() const { return scales_offset() + align(rows * groups() * scale_bytes()); }
  constexpr int64_t factors_offset() const { return zeros_offset() + (zeros ? align(rows * groups()) : 0); }
  constexpr int64_t bytes() const {
    return factors_offset() + (kind == PackedKind::nvfp4 ? align(rows * static_cast<int64_t>(sizeof(float))) : 0);
  }
  bool operator==(const RowLayout&) const = default;
};

// What a weight's description says about its packing beside rows and columns.
struct Packing {
  PackedKind kind = PackedKind::none;
  int32_t group = 0;
  bool zeros = false;
  // int8 alone: the kernel rounds each row of x to int8, absmax / 127 its scale, and multiplies integers (W8A8).
  bool int8_inputs = false;
  constexpr RowLayout layout(int64_t rows, int64_t cols) const { return {kind, rows, cols, group, zeros}; }
  bool operator==(const Packing&) const = default;
};

// Whether there is such a layout: a group fills units, fp4 has its one, zero points belong to integers, and inputs are
// rounded for int8 with a scale per row alone.
constexpr bool is_sound(const Packing& p) {
  const bool fp4 = p.kind == PackedKind::nvfp4 || p.kind == PackedKind::mxfp4;
  const bool integer = p.kind == PackedKind::int8 || p.kind == PackedKind::int4;
  if (p.kind == PackedKind::none || p.group < 0 || (p.zeros && !integer)) return false;
  if (fp4 ? p.group != (p.kind == PackedKind::nvfp4 ? 16 : 32) : p.group % 32 != 0) return false;
  return !p.int8_inputs || (p.kind == PackedKind::int8 && p.group == 0 && !p.zeros);
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
