// Embed: y[t] = weight[index[t] + offset] * scale; index holds the token ids, or the positions where `positions` is set
// (learned positions: GPT-2, OPT).   weights: weight [vocab, width]   inputs: none   output: [tokens, width]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct Embed {
  static constexpr std::string_view kName = "embed";
  int64_t vocab = 0, width = 0;
  float scale = 1;
  bool positions = false;
  int64_t offset = 0;

  ShapeResult shapes(std::span<const ValueSpec> in) const {
    if (!in.empty()) return shape_error("embed takes no inputs");
    if (offset < 0 || offset >= vocab) return shape_error("embed's offset lies outside its table");
    return std::vector<ValueSpec>{{Rows::tokens, width}};
  }
  void fields(auto&& f) {
    f("vocab", vocab), f("width", width), f("scale", scale), f("positions", positions), f("offset", offset);
  }
  bool operator==(const Embed&) const = default;
};

}  // namespace pinion
