#include "calibrate/input_range.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "quant/number_formats.h"

namespace pinion {
namespace {

constexpr std::array<std::string_view, 4> kNames{"auto", "max", "percentile", "mse"};
constexpr double kPercentile = 0.9999;
constexpr int kSteps = 40;                // ranges tried: 1, 0.98 … 0.22 of the largest
constexpr int64_t kMostValues = 1 << 16;  // of the sample that the search looks at

float rounded(float x, float range, InputQuant kind) {
  if (kind == InputQuant::e4m3_static) {
    const float scale = range / kE4m3Max;
    return e4m3_to_f32(f32_to_e4m3(x / scale)) * scale;
  }
  const float scale = range / 127;
  return std::clamp(std::nearbyint(x / scale), -128.0f, 127.0f) * scale;
}

float least_error_range(const InputStatistics& inputs, InputQuant kind) {
  const auto& x = inputs.sample;
  const int64_t n = std::ssize(x), step = (n + kMostValues - 1) / kMostValues | 1;  // odd: passes through all columns
  float best = inputs.absmax;
  double least = -1;
  for (int i = 0; i < kSteps; ++i) {
    const float range = inputs.absmax * (1 - static_cast<float>(i) / 50);
    double error = 0;
    for (int64_t k = 0; k < n; k += step) {
      const double d = rounded(x[k], range, kind) - x[k];
      error += d * d;
    }
    if (least < 0 || error < least) least = error, best = range;
  }
  return best;
}

}  // namespace

Result<RangeMethod> range_method(std::string_view name) {
  const auto it = std::ranges::find(kNames, name);
  if (it != kNames.end()) return static_cast<RangeMethod>(it - kNames.begin());
  return fail(Errc::invalid_argument, fmt::format("the range \"{}\" is not known", name), "--input_range",
              fmt::format("choose {}", fmt::join(kNames, ", ")));
}

float input_range(const InputStatistics& inputs, RangeMethod method, InputQuant kind) {
  if (method == RangeMethod::automatic) method = kind == InputQuant::int8_static ? RangeMethod::mse : RangeMethod::max;
  if (method == RangeMethod::max || inputs.sample.empty() || !(inputs.absmax > 0)) return inputs.absmax;
  if (method == RangeMethod::mse) return least_error_range(inputs, kind);
  std::vector<float> magnitudes(inputs.sample.size());
  std::ranges::transform(inputs.sample, magnitudes.begin(), [](float v) { return std::fabs(v); });
  const auto at = magnitudes.begin() + static_cast<int64_t>(kPercentile * static_cast<double>(magnitudes.size() - 1));
  std::ranges::nth_element(magnitudes, at);
  return *at > 0 ? *at : inputs.absmax;
}

}  // namespace pinion
