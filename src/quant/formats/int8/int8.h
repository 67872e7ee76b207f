// INT8 weights, symmetric: one scale per channel (row), absmax / 127. The weights of int8_wo and of int8_sq, which
// rounds the inputs to int8 too.
#pragma once

#include "quant/quant_format.h"

namespace pinion {

Result<QuantizedMatrix> encode_int8(const FloatMatrix& weight, const EncodeOptions& options, const Calibration*);

}  // namespace pinion
