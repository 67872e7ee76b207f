// Attention over the paged KV cache of layer `layer`, causal; key j is visible to the query at position i iff
// j <= i and (window == 0 or j > i - window). Query head h reads KV head h / (heads / kv_heads). Softmax in f32 over
//   s = scale * q·k;  softcap > 0 (Gemma 2): s = softcap * tanh(s / softcap);
//   alibi > 0 (Press et al. 2022): s += alibi * slope(h) * (j - i);
//   sinks (gpt-oss): one more logit per head, weights sinks[h], that takes its share and has no value.
// inputs: q [tokens, heads * head_dim], k, v [tokens, kv_heads * head_dim] (k and v are written to the cache first),
// or q alone when a RopeKvWrite before it wrote them.   weights: none, or sinks [heads]
// output: [tokens, heads * head_dim]
#pragma once

#include <cmath>

#include "graph/ops/op_base.h"

namespace pinion {

struct Attention {
  static constexpr std::string_view kName = "attention";
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;
  int32_t window = 0;
  int32_t layer = 0;
  float softcap = 0, alibi = 0;
  int64_t alibi_heads = 0, alibi_first = 0;  // slopes are those of heads alibi_first … of a model of alibi_heads
  bool sinks = false;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    const bool fits =
        (x.size() == 1 || (x.size() == 3 && x[1].width == kv_heads * head_dim && x[2].width == x[1].width)) &&
        x[0].width == heads * head_dim && kv_heads > 0 && heads % kv_heads == 0;
    if (!fits)
      return shape_error("attention takes q, or q, k and v, of heads * head_dim and kv_heads * head_dim columns");
    if (alibi > 0 && (alibi_first < 0 || alibi_first + heads > alibi_heads))
      return shape_error("attention's alibi heads lie outside the model's");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) {
    f("heads", heads), f("kv_heads", kv_heads), f("head_dim", head_dim), f("scale", scale), f("window", window),
        f("layer", layer), f("softcap", softcap), f("alibi", alibi), f("alibi_heads", alibi_heads),
        f("alibi_first", alibi_first), f("sinks", sinks);
  }
  bool operator==(const Attention&) const = default;
};

// The slope of one head times `alibi`: powers of 2^(-8 / n) for n heads, n a power of two; heads past the largest power
// of two take every other slope of twice as many.
inline float alibi_slope(const Attention& op, int64_t head) {
  int64_t n = 1;
  while (2 * n <= op.alibi_heads) n *= 2;
  const int64_t h = op.alibi_first + head;
  const double power = h < n ? -8.0 * (h + 1) / n : -4.0 * (2 * (h - n) + 1) / n;
  return static_cast<float>(op.alibi * std::exp2(power));
}

}  // namespace pinion
