// Add: y = a + b.   inputs: a, b [r, w]   output: [r, w]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct Add {
  static constexpr std::string_view kName = "add";
  int64_t width = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 2 || x[0] != x[1] || x[0].width != width) return shape_error("add takes two equal inputs");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) { f("width", width); }
  bool operator==(const Add&) const = default;
};

}  // namespace pinion
