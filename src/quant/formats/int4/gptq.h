// GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR
// 2023): columns are rounded one after the other, and what each rounding does to the output is made good in the columns
// that follow, weighed by the inverse of the inputs' second moments.
#pragma once

#include "quant/quant_format.h"

namespace pinion {

// options.act_order rounds the columns with the largest inputs first, with groups of neighbours all the same (what
// GPTQ's tools call static_groups), so that kernels need no permutation.
Result<QuantizedMatrix> encode_gptq(const FloatMatrix& weight, const EncodeOptions& options, const Calibration*);

}  // namespace pinion
