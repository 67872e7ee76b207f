// LayerNorm over groups of `width` columns: y = (x - mean) * rsqrt(variance + eps) * (offset + weight) (+ bias).
// Weight and bias hold `groups` vectors side by side: 1, shared by all groups of a row, or one for each group (the head
// norms of Cohere and StableLM).   weights: weight [groups * width] (, bias [groups * width])
// input: x [r, k * width], where groups is 1 or k   output: like the input
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct LayerNorm {
  static constexpr std::string_view kName = "layer_norm";
  int64_t width = 0;
  float eps = 1e-5f, offset = 0;
  bool bias = false;
  int64_t groups = 1;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 1 || width <= 0 || x[0].width % width || (groups != 1 && groups != x[0].width / width))
      return shape_error("layer_norm's width must divide its input's, with one weight for all groups or one for each");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) { f("width", width), f("eps", eps), f("offset", offset), f("bias", bias), f("groups", groups); }
  bool operator==(const LayerNorm&) const = default;
};

}  // namespace pinion
