// Act: y = act(x), the activation of an MLP without a gate.   input: x [r, width]   output: [r, width]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct Act {
  static constexpr std::string_view kName = "act";
  int64_t width = 0;
  Activation act = Activation::gelu;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 1 || x[0].width != width) return shape_error("act takes one input of its width");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) { f("width", width), f("act", act); }
  bool operator==(const Act&) const = default;
};

}  // namespace pinion
