// MoeLinear (grouped linear): slot j of a row goes through the weight of its expert e = ids[j]:
//   y_j = x_j W_e^T (+ bias_e), then the epilogue.   x_j is the whole row, or its own part j when per_slot.
//   epilogue none:    y_j [out]
//   epilogue gated:   rows 2i and 2i+1 of W_e are gate i and up i; y_j[i] = act(gate_i) * up_i, [out / 2]
//   epilogue clamped: likewise, y_j[i] = (clamp(up_i, -limit, limit) + 1) * g * sigmoid(1.702 g), g = min(gate_i,
//   limit)
//                     (gpt-oss)
// The op holds the experts [first_expert, first_expert + experts) of the model: a slot of another expert gives zeros
// (expert parallel). A kernel reads no expert that no slot names.
// weights: weight [experts * out, in], expert by expert (, bias [experts * out])
// inputs: x [r, in] or [r, top_k * in], ids [r, top_k] i32   output: [r, top_k * (out or out / 2)]
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

enum class ExpertEpilogue : uint8_t { none, gated, clamped };
constexpr std::array<std::string_view, 3> enum_names(ExpertEpilogue) {
  return {"none", "gated", "clamped"};
}

struct MoeLinear {
  static constexpr std::string_view kName = "moe_linear";
  int64_t experts = 0, top_k = 0, in = 0, out = 0, first_expert = 0;
  bool per_slot = false, bias = false;
  ExpertEpilogue epilogue = ExpertEpilogue::none;
  Activation act = Activation::silu;
  float limit = 0;
  Shard shard = Shard::none;  // of each expert's weight

  int64_t input_width() const { return per_slot ? top_k * in : in; }
  int64_t slot_width() const { return epilogue == ExpertEpilogue::none ? out : out / 2; }
  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 2 || x[0].width != input_width() || experts < 1 || first_expert < 0 || out < 1 ||
        x[1] != ValueSpec{x[0].rows, top_k, DType::i32})
      return shape_error("moe_linear takes rows of `in` columns (top_k times when per_slot) and their experts' ids");
    if (epilogue != ExpertEpilogue::none && out % 2) return shape_error("a gated moe_linear has an even `out`");
    if (epilogue == ExpertEpilogue::clamped && !(limit > 0)) return shape_error("a clamped moe_linear needs a limit");
    return std::vector<ValueSpec>{{x[0].rows, top_k * slot_width(), x[0].dtype}};
  }
  void fields(auto&& f) {
    f("experts", experts), f("top_k", top_k), f("in", in), f("out", out), f("first_expert", first_expert),
        f("per_slot", per_slot), f("bias", bias), f("epilogue", epilogue), f("act", act), f("limit", limit),
        f("shard", shard);
  }
  bool operator==(const MoeLinear&) const = default;
};

}  // namespace pinion
