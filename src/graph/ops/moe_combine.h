// MoeCombine: y = sum over j of weights[j] * h_j, in the order of j, in f32; then the shared expert's output is added,
// as it is or times sigmoid(gate) (Qwen2-MoE).
// inputs: h [r, top_k * width], weights [r, top_k] f32 (, shared [r, width] (, gate [r, 1]))   output: [r, width]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct MoeCombine {
  static constexpr std::string_view kName = "moe_combine";
  int64_t top_k = 0, width = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    bool fits = x.size() >= 2 && x.size() <= 4 && x[0].width == top_k * width &&
                x[1] == ValueSpec{x[0].rows, top_k, DType::f32};
    if (fits && x.size() > 2) fits = x[2] == ValueSpec{x[0].rows, width, x[0].dtype};
    if (fits && x.size() > 3) fits = x[3] == ValueSpec{x[0].rows, 1, x[0].dtype};
    if (!fits) return shape_error("moe_combine takes top_k parts of `width` columns, their weights, a shared output");
    return std::vector<ValueSpec>{{x[0].rows, width, x[0].dtype}};
  }
  void fields(auto&& f) { f("top_k", top_k), f("width", width); }
  bool operator==(const MoeCombine&) const = default;
};

}  // namespace pinion
