// Rope: rotates the first rotary_dim columns of every head by the step's cos/sin table number `table` (the runtime
// fills a table [tokens, rotary_dim / 2] per rope of the graph and step, attention factor included).
// half-split: pairs (i, i + rotary_dim/2); interleaved: pairs (2i, 2i+1).   input: x [tokens, heads * head_dim]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct Rope {
  static constexpr std::string_view kName = "rope";
  int64_t heads = 0, head_dim = 0, rotary_dim = 0;
  int32_t table = 0;
  bool interleaved = false;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 1 || x[0].width != heads * head_dim || rotary_dim > head_dim || rotary_dim % 2) {
      return shape_error("rope takes one input of heads * head_dim columns and an even rotary_dim <= head_dim");
    }
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) {
    f("heads", heads), f("head_dim", head_dim), f("rotary_dim", rotary_dim), f("table", table),
        f("interleaved", interleaved);
  }
  bool operator==(const Rope&) const = default;
};

}  // namespace pinion
