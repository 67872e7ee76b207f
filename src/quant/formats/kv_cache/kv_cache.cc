#include "quant/formats/kv_cache/kv_cache.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "quant/number_formats.h"

namespace pinion {

void kv_to_e4m3(std::span<const float> x, float scale, std::span<uint8_t> out) {
  check(x.size() == out.size(), "kv_to_e4m3: as many codes as values");
  for (size_t i = 0; i < x.size(); ++i) out[i] = f32_to_e4m3(x[i] / scale);
}

void kv_from_e4m3(std::span<const uint8_t> codes, float scale, std::span<float> out) {
  check(codes.size() == out.size(), "kv_from_e4m3: as many values as codes");
  for (size_t i = 0; i < codes.size(); ++i) out[i] = e4m3_to_f32(codes[i]) * scale;
}

float kv_to_int8(std::span<const float> x, std::span<int8_t> out) {
  check(x.size() == out.size(), "kv_to_int8: as many codes as values");
  float absmax = 0;
  for (const float v : x) absmax = std::max(absmax, std::fabs(v));
  const float scale = absmax > 0 ? std::max(absmax / 127, 1e-30f) : 1;
  for (size_t i = 0; i < x.size(); ++i) {
    out[i] = static_cast<int8_t>(std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f));
  }
  return scale;
}

void kv_from_int8(std::span<const int8_t> codes, float scale, std::span<float> out) {
  check(codes.size() == out.size(), "kv_from_int8: as many values as codes");
  for (size_t i = 0; i < codes.size(); ++i) out[i] = static_cast<float>(codes[i]) * scale;
}

}  // namespace pinion
