// GatedAct: y = act(gate) * up.   inputs: gate, up [r, width]   output: [r, width]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct GatedAct {
  static constexpr std::string_view kName = "gated_act";
  int64_t width = 0;
  Activation act = Activation::silu;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 2 || x[0] != x[1] || x[0].width != width)
      return shape_error("gated_act takes gate and up of one width");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) { f("width", width), f("act", act); }
  bool operator==(const GatedAct&) const = default;
};

}  // namespace pinion
