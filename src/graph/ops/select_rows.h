// SelectRows: y[i] = x[output_rows[i]], the rows whose logits are wanted.   input: x [tokens, w]   output: [outputs, w]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct SelectRows {
  static constexpr std::string_view kName = "select_rows";
  int64_t width = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 1 || x[0].rows != Rows::tokens || x[0].width != width)
      return shape_error("select_rows takes rows of tokens");
    return std::vector<ValueSpec>{{Rows::outputs, width}};
  }
  void fields(auto&& f) { f("width", width); }
  bool operator==(const SelectRows&) const = default;
};

}  // namespace pinion
