#include "quant/formats/int8/int8.h"

#include <algorithm>
#include <cmath>

namespace pinion {

Result<QuantizedMatrix> encode_int8(const FloatMatrix& w, const EncodeOptions& options,
                                    const Calibration* calibration) {
  PINION_OK(check_encodable(w));
  QuantizedMatrix m{.scheme = {.bits = 8, .input = options.input}, .rows = w.rows, .cols = w.cols};
  m.codes.resize(w.data.size());
  for (int64_t n = 0; n < w.rows; ++n) {
    const std::span<const float> row = w.data.subspan(n * w.cols, w.cols);
    float absmax = 0;
    for (const float v : row) absmax = std::max(absmax, std::fabs(v));
    const float scale = absmax > 0 ? std::max(absmax / 127, 1e-30f) : 1;
    m.scales.push_back(scale);
    for (int64_t k = 0; k < w.cols; ++k) {
      const float q = std::clamp(std::nearbyint(row[k] / scale), -127.0f, 127.0f);
      m.codes[n * w.cols + k] = static_cast<uint8_t>(static_cast<int8_t>(q));
    }
  }
  PINION_OK(set_input_scale(m, calibration));
  return m;
}

}  // namespace pinion
