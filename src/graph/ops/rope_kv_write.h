// RopeKvWrite (fused): splits qkv into heads, norms each q and k head when qk_norm (weights q_norm, k_norm [head_dim],
// added to `offset`), rotates q and k (rotary_dim 0: not at all), writes k and v into layer `layer` of the paged cache,
// and returns q. input: qkv [tokens, (heads + 2 kv_heads) * head_dim]   output: q [tokens, heads * head_dim]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct RopeKvWrite {
  static constexpr std::string_view kName = "rope_kv_write";
  int64_t heads = 0, kv_heads = 0, head_dim = 0, rotary_dim = 0;
  int32_t table = 0;
  bool interleaved = false;
  bool qk_norm = false;
  float eps = 1e-5f, offset = 0;
  int32_t layer = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 1 || x[0].width != (heads + 2 * kv_heads) * head_dim)
      return shape_error("rope_kv_write takes one merged qkv");
    return std::vector<ValueSpec>{{Rows::tokens, heads * head_dim}};
  }
  void fields(auto&& f) {
    f("heads", heads), f("kv_heads", kv_heads), f("head_dim", head_dim), f("rotary_dim", rotary_dim), f("table", table);
    f("interleaved", interleaved), f("qk_norm", qk_norm), f("eps", eps), f("offset", offset), f("layer", layer);
  }
  bool operator==(const RopeKvWrite&) const = default;
};

}  // namespace pinion
