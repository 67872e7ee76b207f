// RmsNorm over groups of `width` columns: y = x * rsqrt(mean(x^2) + eps) * (offset + weight).
// width equal to the input's width is the usual norm; a head's width norms every head with the same weight (Qwen3).
// weights: weight [width]   input: x [r, k * width]   output: like the input
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct RmsNorm {
  static constexpr std::string_view kName = "rms_norm";
  int64_t width = 0;
  float eps = 1e-5f, offset = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 1 || width <= 0 || x[0].width % width)
      return shape_error("rms_norm's width must divide its input's");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) { f("width", width), f("eps", eps), f("offset", offset); }
  bool operator==(const RmsNorm&) const = default;
};

}  // namespace pinion
