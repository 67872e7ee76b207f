// A quantised weight format by its name: what `--qformat` takes. A format is a row of the table in quant_format.cc and
// a folder under formats/; it works on every device with encode and decode alone, because a weight without a kernel is
// expanded to floats when the engine is built.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/result.h"
#include "quant/quantized_matrix.h"

namespace pinion {

struct FloatMatrix {  // borrows; dense [rows, cols]
  std::span<const float> data;
  int64_t rows = 0, cols = 0;
};

// What a linear's inputs were over the calibration set. Borrows.
struct Calibration {
  FloatMatrix inputs;  // [tokens, cols]: a sample, at most some hundred tokens, for searches
  float absmax = 0;    // over all tokens, for static input scales
  // Running mean of 2 x x^T over all tokens, [cols, cols], for GPTQ; empty: computed from `inputs`.
  std::span<const double> hessian;
};

struct EncodeOptions {
  int32_t group = 128;                     // int4: 32, 64, 128, or 0 for the whole row
  bool zero_points = false;                // int4
  int32_t block_rows = 1, block_cols = 0;  // fp8: {0, 0} per tensor, {1, 0} per channel, {128, 128}
  bool act_order = false;                  // GPTQ
  double damping = 0.01;                   // GPTQ: of the Hessian's mean diagonal
  float smooth_alpha = 0.5f;               // SmoothQuant: how much of the inputs' range goes into the weights; 0: none
  InputQuant input = InputQuant::none;
};

// What is searched over linears that share an input, and folded into the layer before, ahead of encoding. encode()
// alone does the same search for its one linear, and leaves the result as the matrix's input_multiplier.
enum class InputScaling : uint8_t { none, awq, smooth };

struct QuantFormat {
  std::string_view name;     // "int4_awq"
  std::string_view summary;  // for --help
  bool needs_inputs;         // encode fails without Calibration::inputs
  InputScaling scaling;
  EncodeOptions defaults;
  // Errors: invalid_argument (NaN or infinity in the weight, a group that does not divide the row), unsupported.
  Result<QuantizedMatrix> (*encode)(const FloatMatrix& weight, const EncodeOptions& options, const Calibration*);
};

std::span<const QuantFormat> quant_formats();
Result<const QuantFormat*> find_quant_format(std::string_view name);  // unknown: the error lists the known ones

// Every format's check of its input: dimensions, no NaN, no infinity.
Status check_encodable(const FloatMatrix& weight);
// The scale of static inputs, the calibrated range over the type's largest number; other inputs need none. Errors:
// invalid_argument without a range.
Status set_input_scale(QuantizedMatrix& m, const Calibration* calibration);

}  // namespace pinion
