// MXFP4 (OCP Microscaling Formats 1.0): e2m1 codes and a power of two per 32 columns.
#pragma once

#include "quant/quant_format.h"

namespace pinion {

// Of the standard's exponent, floor(log2(absmax)) - 2, and the next one, which clips nothing, the one that leaves the
// smaller squared error.
Result<QuantizedMatrix> encode_mxfp4(const FloatMatrix& weight, const EncodeOptions& options, const Calibration*);

}  // namespace pinion
