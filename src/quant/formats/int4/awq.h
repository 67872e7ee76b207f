// AWQ (Lin et al., "AWQ: Activation-aware Weight Quantization", MLSys 2024): columns whose inputs are large are scaled
// up before rounding, and the inputs down; then the range of each group is clipped where that lowers the error of the
// output. Both searches minimise the squared error of x W^T over a sample of inputs.
#pragma once

#include <span>
#include <vector>

#include "quant/quant_format.h"

namespace pinion {

struct AwqScales {
  std::vector<float> scale;  // [cols]: columns of W are multiplied, inputs divided; geometric middle 1
  double loss = 0;           // mean squared error of the outputs with them
  double plain_loss = 0;     // and without
};

// For linears that share an input (q, k, v; gate, up). inputs: [tokens, cols]. All have the same cols.
AwqScales awq_search_scales(std::span<const FloatMatrix> linears, const FloatMatrix& inputs, int32_t group,
                            bool zero_points);

// Clamps `weight` ([rows, cols], in place) to the range per row and group that gives the least output error: of ten
// ranges down to 55 %.
void awq_clip(std::span<float> weight, int64_t rows, int64_t cols, const FloatMatrix& inputs, int32_t group,
              bool zero_points);

// Both searches for one linear alone; the scales' inverse becomes the matrix's input_multiplier.
Result<QuantizedMatrix> encode_awq(const FloatMatrix& weight, const EncodeOptions& options, const Calibration*);

}  // namespace pinion
