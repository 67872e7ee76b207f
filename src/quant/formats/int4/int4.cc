#include "quant/formats/int4/int4.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace pinion {

int8_t Int4Group::encode(float w) const {
  return static_cast<int8_t>(std::clamp(std::nearbyint(w / scale) + static_cast<float>(zero), -8.0f, 7.0f));
}

Int4Group int4_group(float min, float max, bool zero_points) {
  constexpr float kSmallest = 1e-30f;  // keeps w / scale finite for groups of subnormals
  if (!zero_points) {
    const float absmax = std::max(std::fabs(min), std::fabs(max));
    return {absmax > 0 ? std::max(absmax / 7, kSmallest) : 1, 0};
  }
  min = std::min(min, 0.0f);
  max = std::max(max, 0.0f);
  if (min == max) return {};
  const float scale = std::max((max - min) / 15, kSmallest);
  const float zero = std::clamp(-std::nearbyint(min / scale), 0.0f, 15.0f) - 8;
  return {scale, static_cast<int8_t>(zero)};
}

Int4Group int4_group(std::span<const float> w, bool zero_points) {
  const auto [min, max] = std::ranges::minmax(w);
  return int4_group(min, max, zero_points);
}

Result<int32_t> check_int4_group(int64_t cols, int32_t group) {
  if (group == 0) return static_cast<int32_t>(cols);
  if (group < 0 || group % 32 != 0) {
    return fail(Errc::invalid_argument, fmt::format("a group of {} columns is not supported", group), {},
                "take 32, 64 or 128");
  }
  if (cols % group != 0) {
    return fail(Errc::invalid_argument, fmt::format("groups of {} do not divide a row of {}", group, cols), {},
                "take a smaller group, or exclude the module");
  }
  return group;
}

Result<QuantizedMatrix> encode_int4(const FloatMatrix& w, const EncodeOptions& options,
                                    const Calibration* calibration) {
  PINION_OK(check_encodable(w));
  PINION_TRY(const int32_t group, check_int4_group(w.cols, options.group));
  QuantizedMatrix m{.scheme = {.bits = 4,
                               .block_rows = 1,
                               .block_cols = group,
                               .zero_points = options.zero_points,
                               .input = options.input},
                    .rows = w.rows,
                    .cols = w.cols};
  m.codes.resize(w.data.size());
  for (int64_t begin = 0; begin < std::ssize(w.data); begin += group) {  // groups divide rows
    const std::span<const float> values = w.data.subspan(begin, group);
    const Int4Group g = int4_group(values, options.zero_points);
    m.scales.push_back(g.scale);
    if (options.zero_points) m.zeros.push_back(g.zero);
    for (int64_t i = 0; i < group; ++i) m.codes[begin + i] = static_cast<uint8_t>(g.encode(values[i]));
  }
  PINION_OK(set_input_scale(m, calibration));
  return m;
}

}  // namespace pinion
