#include "quant/formats/nvfp4/nvfp4.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "quant/number_formats.h"

namespace pinion {

Result<QuantizedMatrix> encode_nvfp4(const FloatMatrix& w, const EncodeOptions&, const Calibration*) {
  constexpr int64_t kGroup = 16;
  PINION_OK(check_encodable(w));
  if (w.cols % kGroup != 0) {
    return fail(Errc::invalid_argument, fmt::format("nvfp4's groups of 16 do not divide a row of {}", w.cols), {},
                "exclude the module");
  }
  QuantizedMatrix m{.scheme = {.code = CodeType::e2m1, .bits = 4, .block_rows = 1, .block_cols = kGroup},
                    .rows = w.rows,
                    .cols = w.cols};
  float absmax = 0;
  for (const float v : w.data) absmax = std::max(absmax, std::fabs(v));
  m.tensor_scale = absmax > 0 ? std::max(absmax / (kE2m1Max * kE4m3Max), 1e-30f) : 1;
  m.codes.resize(w.data.size());
  for (int64_t begin = 0; begin < std::ssize(w.data); begin += kGroup) {
    float a = 0;
    for (int64_t i = begin; i < begin + kGroup; ++i) a = std::max(a, std::fabs(w.data[i]));
    float scale = e4m3_to_f32(f32_to_e4m3(a / (kE2m1Max * m.tensor_scale)));
    if (scale == 0) scale = 1;  // the block rounds to zero whatever its scale; the exporters write 1
    m.scales.push_back(scale);
    for (int64_t i = begin; i < begin + kGroup; ++i) m.codes[i] = f32_to_e2m1(w.data[i] / (scale * m.tensor_scale));
  }
  return m;
}

}  // namespace pinion
