// Attention over the paged KV cache of layer `layer`, causal; key j is visible to the query at position i iff
// j <= i and (window == 0 or j > i - window). Query head h reads KV head h / (heads / kv_heads). Softmax in f32.
// inputs: q [tokens, heads * head_dim], k, v [tokens, kv_heads * head_dim] (k and v are written to the cache first),
// or q alone when a RopeKvWrite before it wrote them.   output: [tokens, heads * head_dim]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct Attention {
  static constexpr std::string_view kName = "attention";
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;
  int32_t window = 0;
  int32_t layer = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    const bool fits =
        (x.size() == 1 || (x.size() == 3 && x[1].width == kv_heads * head_dim && x[2].width == x[1].width)) &&
        x[0].width == heads * head_dim && kv_heads > 0 && heads % kv_heads == 0;
    if (!fits)
      return shape_error("attention takes q, or q, k and v, of heads * head_dim and kv_heads * head_dim columns");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) {
    f("heads", heads), f("kv_heads", kv_heads), f("head_dim", head_dim), f("scale", scale), f("window", window),
        f("layer", layer);
  }
  bool operator==(const Attention&) const = default;
};

}  // namespace pinion
