// Linear: y = x W^T (+ bias), then the epilogue.   weights: weight [out, in] (, bias [out])   input: x [r, in]
//   epilogue none:       output [r, out]
//   epilogue gated_silu: rows 2i and 2i+1 of W are gate i and up i; y[i] = silu(gate_i) * up_i, output [r, out / 2]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

enum class Epilogue : uint8_t { none, gated_silu };
constexpr std::array<std::string_view, 2> enum_names(Epilogue) {
  return {"none", "gated_silu"};
}

struct Linear {
  static constexpr std::string_view kName = "linear";
  int64_t in = 0, out = 0;
  bool bias = false;
  Epilogue epilogue = Epilogue::none;
  Shard shard = Shard::none;

  int64_t output_width() const { return epilogue == Epilogue::gated_silu ? out / 2 : out; }
  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 1 || x[0].width != in) return shape_error("linear takes one input of width `in`");
    return std::vector<ValueSpec>{{x[0].rows, output_width()}};
  }
  void fields(auto&& f) { f("in", in), f("out", out), f("bias", bias), f("epilogue", epilogue), f("shard", shard); }
  bool operator==(const Linear&) const = default;
};

}  // namespace pinion
