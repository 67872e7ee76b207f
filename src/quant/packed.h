// Packs quantised matrices into the layouts that kernels read, and back, bit for bit.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "quant/quantized_matrix.h"
#include "tensor/row_layout.h"

namespace pinion {

// The layout of a matrix, or the reason why it has none (it is then expanded to floats): the groups of an
// act-order differ in size, a group does not fill units, the inputs have multipliers, or there are 2 or 3 bits. From
// the scheme alone offsets and order do not show.
struct PackedPlan {
  RowLayout layout;     // kind none when why_not is set
  std::string why_not;  // "GPTQ act-order: …"
};
PackedPlan plan_packed(const Scheme& scheme, int64_t rows, int64_t cols);
PackedPlan plan_packed(const QuantizedMatrix& m);

// Writes the rows of `m` as rows first, first + step, … of a packed matrix with more rows (stacked or interleaved
// parts). `m`'s own plan must agree with `layout` but for the rows. Rows that no part writes keep their bytes: the
// caller clears the memory first.
void pack_rows(const QuantizedMatrix& m, const RowLayout& layout, int64_t first, int64_t step,
               std::span<std::byte> out);
// Row `row` of `m` as row `to`; the caller has checked that the plan agrees. Rows may be written at the same time.
void pack_row(const QuantizedMatrix& m, int64_t row, const RowLayout& layout, int64_t to, std::span<std::byte> out);
// The order of its columns, which all parts of a packed matrix share; pack_row leaves it to this.
void pack_order(const QuantizedMatrix& m, const RowLayout& layout, std::span<std::byte> out);
std::vector<std::byte> pack(const QuantizedMatrix& m);

// The matrix with a scale per row and group: equal codes, scales and zeros as went in, the scales of taller blocks
// repeated for each row.
QuantizedMatrix unpack(const RowLayout& layout, std::span<const std::byte> packed);

// Rows [first, last) as f32, as every kernel must read them. out: [last - first, cols].
void decode_packed(const RowLayout& layout, std::span<const std::byte> packed, int64_t first, int64_t last,
                   std::span<float> out);

}  // namespace pinion
