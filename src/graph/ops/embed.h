// Embed: y[t] = weight[token_ids[t]] * scale.   weights: weight [vocab, width]   inputs: none   output: [tokens, width]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct Embed {
  static constexpr std::string_view kName = "embed";
  int64_t vocab = 0, width = 0;
  float scale = 1;

  ShapeResult shapes(std::span<const ValueSpec> in) const {
    if (!in.empty()) return shape_error("embed takes no inputs");
    return std::vector<ValueSpec>{{Rows::tokens, width}};
  }
  void fields(auto&& f) { f("vocab", vocab), f("width", width), f("scale", scale); }
  bool operator==(const Embed&) const = default;
};

}  // namespace pinion
