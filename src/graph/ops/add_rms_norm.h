// AddRmsNorm (fused): sum = x + scale * residual; y = RmsNorm(sum).   weights: weight [width]
// inputs: x, residual [r, width]   outputs: sum, y [r, width]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct AddRmsNorm {
  static constexpr std::string_view kName = "add_rms_norm";
  int64_t width = 0;
  float eps = 1e-5f, offset = 0, scale = 1;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 2 || x[0] != x[1] || x[0].width != width) return shape_error("add_rms_norm takes two equal inputs");
    return std::vector<ValueSpec>{x[0], x[0]};
  }
  void fields(auto&& f) { f("width", width), f("eps", eps), f("offset", offset), f("scale", scale); }
  bool operator==(const AddRmsNorm&) const = default;
};

}  // namespace pinion
