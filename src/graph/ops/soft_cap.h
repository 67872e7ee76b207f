// SoftCap: y = cap * tanh(scale * x / cap), or y = scale * x where cap is 0: what families do to their logits (Gemma 2
// caps them, Granite and Cohere scale them).   input: x [r, width]   output: [r, width]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct SoftCap {
  static constexpr std::string_view kName = "soft_cap";
  int64_t width = 0;
  float scale = 1, cap = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 1 || x[0].width != width) return shape_error("soft_cap takes one input of its width");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) { f("width", width), f("scale", scale), f("cap", cap); }
  bool operator==(const SoftCap&) const = default;
};

}  // namespace pinion
