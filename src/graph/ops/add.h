// Add: y = a + scale * b (Granite scales each branch).   inputs: a, b [r, w]   output: [r, w]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct Add {
  static constexpr std::string_view kName = "add";
  int64_t width = 0;
  float scale = 1;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 2 || x[0] != x[1] || x[0].width != width) return shape_error("add takes two equal inputs");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) { f("width", width), f("scale", scale); }
  bool operator==(const Add&) const = default;
};

}  // namespace pinion
