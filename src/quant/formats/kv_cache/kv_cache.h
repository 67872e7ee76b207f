// KV cache entries in 8 bits. fp8: stored = e4m3(x / scale) with one calibrated (or unit) scale per layer for K and one
// for V. int8: a scale per token and head, absmax / 127, stored beside the codes; nothing to calibrate.
#pragma once

#include <cstdint>
#include <span>

namespace pinion {

void kv_to_e4m3(std::span<const float> x, float scale, std::span<uint8_t> out);
void kv_from_e4m3(std::span<const uint8_t> codes, float scale, std::span<float> out);

// Returns the scale; 1 for a row of zeros.
float kv_to_int8(std::span<const float> x, std::span<int8_t> out);
void kv_from_int8(std::span<const int8_t> codes, float scale, std::span<float> out);

}  // namespace pinion
