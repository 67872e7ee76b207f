// A quantised weight in the one form that all formats share: a code per element, a scale per block, and what else the
// format keeps. Importers produce it, encoders produce it, kernels' layouts are packed from it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace pinion {

enum class CodeType : uint8_t {
  integer,  // two's complement of `bits` bits, sign-extended to a byte
  e4m3,     // 8 bits
  e2m1,     // 4 bits, in the low half of a byte
};

// What the input of the linear is rounded to before the product. Scales of inputs: `static` ones are in the checkpoint
// (QuantizedMatrix::input_scale), `token` ones are the row's absmax over the type's largest value.
enum class InputQuant : uint8_t {
  none,
  e4m3_static,
  e4m3_token,
  e4m3_token_group128,
  int8_static,
  int8_token,
  e2m1_group16
};

// How a matrix [rows, cols] is quantised. One scale (and zero point) covers block_rows x block_cols elements; 0 means
// the whole dimension. So per tensor is {0, 0}, per channel {1, 0}, groups of 128 {1, 128}, DeepSeek's blocks {128,
// 128}.
struct Scheme {
  CodeType code = CodeType::integer;
  int8_t bits = 8;
  int32_t block_rows = 1, block_cols = 0;
  bool zero_points = false;
  InputQuant input = InputQuant::none;
  bool operator==(const Scheme&) const = default;
};
std::string str(const Scheme& scheme);  // "int4 group 128, zero points"

// W[n, k] = (value(code[n, k]) - zero[block]) * scale[block] * tensor_scale - offset[block], and the linear is
//   y = (x ∘ input_multiplier) W^T.
struct QuantizedMatrix {
  Scheme scheme;
  int64_t rows = 0, cols = 0;
  std::vector<uint8_t> codes;           // [rows, cols]
  std::vector<float> scales;            // [scale_rows(), scale_cols()]
  std::vector<int8_t> zeros;            // like scales, or empty
  std::vector<float> offsets;           // like scales, or empty: all 0 (GGUF's K-quants)
  std::vector<int32_t> column_group;    // [cols]: the scale column of each; empty: col / block_cols (GPTQ act-order)
  std::vector<float> input_multiplier;  // [cols]; empty: all 1 (ModelOpt's pre_quant_scale)
  bool signed_scales = false;           // the tool that made it means a negative scale
  float tensor_scale = 1;               // NVFP4's second level
  float input_scale = 0;                // of InputQuant's static kinds; 0: there is none

  int64_t scale_rows() const { return scheme.block_rows ? (rows + scheme.block_rows - 1) / scheme.block_rows : 1; }
  int64_t scale_cols() const { return scheme.block_cols ? (cols + scheme.block_cols - 1) / scheme.block_cols : 1; }
  int64_t scale_index(int64_t row, int64_t col) const {
    const int64_t r = scheme.block_rows ? row / scheme.block_rows : 0;
    const int64_t c = !column_group.empty() ? column_group[col] : scheme.block_cols ? col / scheme.block_cols : 0;
    return r * scale_cols() + c;
  }
};

// What a code stands for, before zero point and scale.
float code_value(CodeType type, uint8_t code);

// Sizes agree, every scale is finite and not negative, codes and zero points are in range, groups exist. `where` names
// the tensor. Errors: corrupt.
Status validate(const QuantizedMatrix& m, std::string_view where);

// Rows [first, last) as f32, with input_multiplier multiplied in, so that y = x out^T. out: [last - first, cols].
void decode_rows(const QuantizedMatrix& m, int64_t first, int64_t last, std::span<float> out);
std::vector<float> decode(const QuantizedMatrix& m);

}  // namespace pinion
