// FP8 weights: e4m3 codes with a scale per tensor, per channel (row) or per 128x128 block. The scale is absmax / 448,
// so that the largest weight has the largest code.
#pragma once

#include "quant/quant_format.h"

namespace pinion {

// The scheme's blocks come from options.block_rows and block_cols.
Result<QuantizedMatrix> encode_fp8(const FloatMatrix& weight, const EncodeOptions& options, const Calibration*);

}  // namespace pinion
