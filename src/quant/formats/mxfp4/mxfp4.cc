#include "quant/formats/mxfp4/mxfp4.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "quant/number_formats.h"

namespace pinion {
namespace {

double squared_error(std::span<const float> w, float scale) {
  double sum = 0;
  for (const float v : w) {
    const double e = e2m1_to_f32(f32_to_e2m1(v / scale)) * scale - v;
    sum += e * e;
  }
  return sum;
}

}  // namespace

Result<QuantizedMatrix> encode_mxfp4(const FloatMatrix& w, const EncodeOptions&, const Calibration*) {
  constexpr int64_t kGroup = 32;
  PINION_OK(check_encodable(w));
  if (w.cols % kGroup != 0) {
    return fail(Errc::invalid_argument, fmt::format("mxfp4's groups of 32 do not divide a row of {}", w.cols), {},
                "exclude the module");
  }
  QuantizedMatrix m{.scheme = {.code = CodeType::e2m1, .bits = 4, .block_rows = 1, .block_cols = kGroup},
                    .rows = w.rows,
                    .cols = w.cols};
  m.codes.resize(w.data.size());
  for (int64_t begin = 0; begin < std::ssize(w.data); begin += kGroup) {
    const std::span<const float> block = w.data.subspan(begin, kGroup);
    float absmax = 0;
    for (const float v : block) absmax = std::max(absmax, std::fabs(v));
    int exponent = absmax > 0 ? std::clamp(std::ilogb(absmax) - 2, -126, 127) : 0;
    if (absmax > 0 && exponent < 127 &&
        squared_error(block, std::ldexp(1.0f, exponent + 1)) < squared_error(block, std::ldexp(1.0f, exponent))) {
      ++exponent;
    }
    const float scale = std::ldexp(1.0f, exponent);
    m.scales.push_back(scale);
    for (int64_t i = 0; i < kGroup; ++i) m.codes[begin + i] = f32_to_e2m1(block[i] / scale);
  }
  return m;
}

}  // namespace pinion
