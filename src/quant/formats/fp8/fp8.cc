#include "quant/formats/fp8/fp8.h"

#include <algorithm>
#include <cmath>

#include "quant/number_formats.h"

namespace pinion {

Result<QuantizedMatrix> encode_fp8(const FloatMatrix& w, const EncodeOptions& options, const Calibration* calibration) {
  PINION_OK(check_encodable(w));
  QuantizedMatrix m{.scheme = {.code = CodeType::e4m3,
                               .bits = 8,
                               .block_rows = options.block_rows,
                               .block_cols = options.block_cols,
                               .input = options.input},
                    .rows = w.rows,
                    .cols = w.cols};
  std::vector<float> absmax(m.scale_rows() * m.scale_cols());
  for (int64_t n = 0; n < w.rows; ++n) {
    for (int64_t k = 0; k < w.cols; ++k) {
      float& a = absmax[m.scale_index(n, k)];
      a = std::max(a, std::fabs(w.data[n * w.cols + k]));
    }
  }
  // An empty block has any scale; a subnormal quotient is raised so that w / scale stays finite.
  for (const float a : absmax) m.scales.push_back(a > 0 ? std::max(a / kE4m3Max, 1e-30f) : 1);
  m.codes.resize(w.data.size());
  for (int64_t n = 0; n < w.rows; ++n) {
    for (int64_t k = 0; k < w.cols; ++k) {
      const int64_t i = n * w.cols + k;
      m.codes[i] = f32_to_e4m3(w.data[i] / m.scales[m.scale_index(n, k)]);
    }
  }
  PINION_OK(set_input_scale(m, calibration));
  return m;
}

}  // namespace pinion
