// INT4 weights in groups of columns: symmetric (absmax / 7) or with a zero point ((max - min) / 15, the range widened
// to hold 0). The weights of int4_wo, int4_awq, int4_gptq and w4a8_awq.
#pragma once

#include "quant/quant_format.h"

namespace pinion {

Result<QuantizedMatrix> encode_int4(const FloatMatrix& weight, const EncodeOptions& options, const Calibration*);

// One group's scale and zero point, and the code of a value in it: what AWQ's and GPTQ's searches share.
struct Int4Group {
  float scale = 1;
  int8_t zero = 0;  // signed, -8 … 7
  int8_t encode(float w) const;
  float decode(int8_t q) const { return static_cast<float>(q - zero) * scale; }
  float round(float w) const { return decode(encode(w)); }
};
Int4Group int4_group(float min, float max, bool zero_points);
Int4Group int4_group(std::span<const float> w, bool zero_points);

// The group must divide the row. 0 becomes the whole row.
Result<int32_t> check_int4_group(int64_t cols, int32_t group);

}  // namespace pinion
