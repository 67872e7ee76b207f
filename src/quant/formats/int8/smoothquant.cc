#include "quant/formats/int8/smoothquant.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "quant/formats/int8/int8.h"

namespace pinion {

std::vector<float> smooth_scales(std::span<const float> input_absmax, std::span<const FloatMatrix> linears,
                                 float alpha) {
  const int64_t cols = std::ssize(input_absmax);
  std::vector<float> weight_absmax(cols), scale(cols, 1.0f);
  if (alpha == 0) return scale;
  for (const FloatMatrix& w : linears) {
    check(w.cols == cols, "smooth_scales: the linears share the input");
    for (int64_t i = 0; i < std::ssize(w.data); ++i) {
      weight_absmax[i % cols] = std::max(weight_absmax[i % cols], std::fabs(w.data[i]));
    }
  }
  for (int64_t k = 0; k < cols; ++k) {
    if (!(input_absmax[k] > 0) || !(weight_absmax[k] > 0)) continue;
    const float s = std::pow(input_absmax[k], alpha) / std::pow(weight_absmax[k], 1 - alpha);
    scale[k] = std::clamp(s, 1e-5f, 1e5f);
  }
  return scale;
}

Result<QuantizedMatrix> encode_int8_sq(const FloatMatrix& w, const EncodeOptions& options,
                                       const Calibration* calibration) {
  PINION_OK(check_encodable(w));
  if (calibration == nullptr || calibration->inputs.rows == 0 || calibration->inputs.cols != w.cols) {
    return fail(Errc::invalid_argument, "SmoothQuant needs a sample of the linear's inputs", {},
                "give --calib_dataset");
  }
  const FloatMatrix& x = calibration->inputs;
  std::vector<float> absmax(w.cols);
  for (int64_t i = 0; i < std::ssize(x.data); ++i) {
    absmax[i % w.cols] = std::max(absmax[i % w.cols], std::fabs(x.data[i]));
  }
  const std::vector<float> scale = smooth_scales(absmax, std::span(&w, 1), options.smooth_alpha);
  std::vector<float> smoothed(w.data.begin(), w.data.end());
  for (int64_t i = 0; i < std::ssize(smoothed); ++i) smoothed[i] *= scale[i % w.cols];
  Calibration after = *calibration;
  after.absmax = 0;
  for (int64_t k = 0; k < w.cols; ++k) after.absmax = std::max(after.absmax, absmax[k] / scale[k]);
  PINION_TRY(QuantizedMatrix m, encode_int8({smoothed, w.rows, w.cols}, options, &after));
  for (const float s : scale) m.input_multiplier.push_back(1 / s);
  return m;
}

}  // namespace pinion
