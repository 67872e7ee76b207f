// MlaAttention: causal attention over the latent cache (c | k_pe per token). Per head h, kv_b holds nope rows W_UK and
// v rows W_UV:   key_j = W_UK c_j | k_pe_j,   value_j = W_UV c_j,   y = softmax(scale * q . key) value, in f32.
// The absorbed form never makes a key or value: (q_nope W_UK) . c = q_nope . (W_UK c), and W_UV is applied to the
// weighted sum of c. Both forms are this op; a kernel takes the one that suits the rows at hand.
// weights: kv_b [heads * (nope + v), rank]
// input: q [tokens, heads * (nope + rope)] as MlaKvWrite returns it   output: [tokens, heads * v]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct MlaAttention {
  static constexpr std::string_view kName = "mla_attention";
  int64_t heads = 0, nope = 0, rope = 0, rank = 0, v = 0;
  float scale = 1;
  int32_t layer = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 1 || x[0].width != heads * (nope + rope) || rank < 1 || v < 1)
      return shape_error("mla_attention takes q of heads * (nope + rope) columns");
    return std::vector<ValueSpec>{{Rows::tokens, heads * v, x[0].dtype}};
  }
  void fields(auto&& f) {
    f("heads", heads), f("nope", nope), f("rope", rope), f("rank", rank), f("v", v), f("scale", scale),
        f("layer", layer);
  }
  bool operator==(const MlaAttention&) const = default;
};

}  // namespace pinion
