// NVFP4: e2m1 codes, an e4m3 scale per 16 columns, one f32 scale per tensor: W = code * scale * tensor_scale.
// tensor_scale = absmax / (6 * 448), so that the largest block scale is 448.
#pragma once

#include "quant/quant_format.h"

namespace pinion {

Result<QuantizedMatrix> encode_nvfp4(const FloatMatrix& weight, const EncodeOptions& options, const Calibration*);

}  // namespace pinion
