// A counter-based generator: one 32-bit hash of (name, pair number) makes two elements of 16 random bits each. Plain
// loops that compilers vectorise; no FMA, so that every CPU makes the same numbers.
#include "checkpoint/dummy.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/hash.h"

namespace pinion {
namespace {

constexpr int kBlockPairs = 1024;  // 8 KiB of f32: stays in L1

struct Distribution {
  float scale = 0, centre = 0;  // value = centre + scale * u, u uniform over (-32768, 32768)
};

Distribution distribution(std::string_view name, int64_t row_width) {
  const size_t dot = name.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? name : name.substr(dot + 1);
  std::string_view module = dot == std::string_view::npos ? std::string_view{} : name.substr(0, dot);
  module = module.substr(module.rfind('.') + 1);  // npos + 1 is 0
  const auto holds = [&](std::string_view part) { return module.find(part) != std::string_view::npos; };
  constexpr float kUnit = 1.0f / 32768;
  if (last.ends_with("bias")) return {0.02f * kUnit, 0};
  if (last == "weight" && (holds("norm") || module.starts_with("ln_"))) return {0.1f * kUnit, 1};
  // A uniform distribution over (-a, a) has the standard deviation a / sqrt(3).
  const float sigma = holds("embed") || module == "wte" || module == "wpe"
                          ? 0.02f
                          : 1.0f / std::sqrt(static_cast<float>(std::max<int64_t>(row_width, 1)));
  return {sigma * std::sqrt(3.0f) * kUnit, 0};
}

struct Key {
  uint32_t add, flip;
};

// Integer mixing: two rounds of multiply and shift spread each input bit over all output bits.
inline uint32_t mix(uint32_t x, Key key) {
  x = x * 0x9e3779b1u + key.add;
  x ^= x >> 16;
  x *= 0x21f0aaadu;
  x ^= (x >> 15) ^ key.flip;
  x *= 0x735a2d97u;
  x ^= x >> 15;
  return x;
}

inline uint32_t to_f32(float v) {
  return std::bit_cast<uint32_t>(v);
}
inline uint32_t to_bf16(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  return (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
}
inline uint32_t to_f16(float v) {  // finite and below 65504; without branches, unlike f32_to_f16
  const uint32_t u = std::bit_cast<uint32_t>(v), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  const uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1)) >> 13;
  // Adding 0.5 moves the unit of a subnormal, 2^-24, to the last bit of the f32 mantissa, rounded as it should be.
  const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0.5f) - 0x3f000000u;
  const uint32_t subnormal = 0u - static_cast<uint32_t>(a < 0x38800000u);  // a mask: a branch would not vectorise
  return sign | (small & subnormal) | (normal & ~subnormal);
}

template <uint32_t (*kConvert)(float)>
[[gnu::always_inline]] inline void fill_block(uint32_t first_pair, int pairs, Key key, Distribution d, uint32_t* out) {
  for (int i = 0; i < pairs; ++i) {
    const uint32_t h = mix(first_pair + static_cast<uint32_t>(i), key);
    const float low = (static_cast<float>(static_cast<int32_t>(h & 0xffff)) - 32767.5f) * d.scale + d.centre;
    const float high = (static_cast<float>(static_cast<int32_t>(h >> 16)) - 32767.5f) * d.scale + d.centre;
    if constexpr (kConvert == to_f32) {
      out[2 * i] = kConvert(low);
      out[2 * i + 1] = kConvert(high);
    } else {
      out[i] = kConvert(low) | kConvert(high) << 16;
    }
  }
}

using Fill = void (*)(uint32_t, int, Key, Distribution, uint32_t*);

template <uint32_t (*kConvert)(float)>
void fill_portable(uint32_t first_pair, int pairs, Key key, Distribution d, uint32_t* out) {
  fill_block<kConvert>(first_pair, pairs, key, d, out);
}

#if defined(__x86_64__)
template <uint32_t (*kConvert)(float)>
[[gnu::target("avx2")]] void fill_avx2(uint32_t first_pair, int pairs, Key key, Distribution d, uint32_t* out) {
  fill_block<kConvert>(first_pair, pairs, key, d, out);
}
#endif

template <uint32_t (*kConvert)(float)>
Fill choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return fill_avx2<kConvert>;
#endif
  return fill_portable<kConvert>;
}

}  // namespace

void fill_dummy(std::string_view name, DType type, std::span<std::byte> out, int64_t row_width,
                uint64_t first_element) {
  check(is_float(type), "dummy weights are f32, f16 or bf16");
  const size_t element = byte_size(type);
  check(out.size() % element == 0, "a whole number of elements");
  const Fill fill = type == DType::f32 ? choose<to_f32>() : type == DType::f16 ? choose<to_f16>() : choose<to_bf16>();
  const Distribution d = distribution(name, row_width);
  const Hash128 hash = hash128(name);

  alignas(64) uint32_t block[2 * kBlockPairs];
  uint64_t at = first_element;
  while (!out.empty()) {
    const uint64_t pair = at / 2;
    const uint64_t skipped = at % 2;
    // A block stays within 2^32 pairs, whose upper half goes into the key.
    const uint64_t until_wrap = (uint64_t{1} << 32) - static_cast<uint32_t>(pair);
    const uint64_t left = (out.size() / element + skipped + 1) / 2;
    const int pairs = static_cast<int>(std::min({uint64_t{kBlockPairs}, until_wrap, left}));
    const uint64_t seed = hash.low ^ (pair >> 32) * 0x9e3779b97f4a7c15u;
    fill(static_cast<uint32_t>(pair), pairs, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}, d,
         block);
    const size_t bytes = std::min<size_t>((2 * pairs - skipped) * element, out.size());
    std::memcpy(out.data(), reinterpret_cast<const std::byte*>(block) + skipped * element, bytes);
    out = out.subspan(bytes);
    at += bytes / element;
  }
}

}  // namespace pinion
