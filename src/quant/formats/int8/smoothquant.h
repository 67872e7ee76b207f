// SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
// ICML 2023): outliers of the inputs are divided out and multiplied into the weights, so that both round well to int8.
#pragma once

#include <span>
#include <vector>

#include "quant/quant_format.h"

namespace pinion {

// s[k] = max|x_k|^alpha / max_n|W[n, k]|^(1 - alpha) over the linears that share the input: inputs are divided by s,
// columns multiplied. input_absmax: [cols]. A column that is never used, or all zero, keeps 1; all do with an alpha of
// 0 (W8A8 without smoothing).
std::vector<float> smooth_scales(std::span<const float> input_absmax, std::span<const FloatMatrix> linears,
                                 float alpha = 0.5f);

// int8 weights of one linear alone, smoothed; the scales' inverse becomes the matrix's input_multiplier.
Result<QuantizedMatrix> encode_int8_sq(const FloatMatrix& weight, const EncodeOptions& options, const Calibration*);

}  // namespace pinion
