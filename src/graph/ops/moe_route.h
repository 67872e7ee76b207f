// MoeRoute: each row's top_k of `experts` experts, from the router's logits, in f32.
//   scores   s = softmax(logits) or sigmoid(logits) over all experts
//   choice   c = s + bias. With groups > 1 the experts form equal runs of neighbours; only the topk_groups groups with
//            the best group score (the largest c, or the sum of the two largest) take part. The top_k largest c are
//            chosen, the lower id on a tie.
//   weights  w = s of the chosen; normalize: w / (sum + 1e-20); then w * scale
// Softmax with normalize is the softmax over the chosen logits alone (Mixtral, gpt-oss). Group-limited choice:
// DeepSeek-V2 (arXiv:2405.04434, 2.1.2) by the largest, V3 (arXiv:2412.19437, 2.1.2) by the two largest with a bias.
// sparsemixer (Phi-3.5-MoE at inference, top_k = 2): the first is the largest logit m, its weight its softmax among the
// logits l with (m - l) / max(|l|, m) <= 2 jitter; the second likewise among the others.
// weights: bias [experts] when `bias`   input: logits [r, experts]
// outputs: ids [r, top_k] i32, ascending in a row, so that sums over them have one order; weights [r, top_k] f32
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

enum class RouteScore : uint8_t { softmax, sigmoid, sparsemixer };
constexpr std::array<std::string_view, 3> enum_names(RouteScore) {
  return {"softmax", "sigmoid", "sparsemixer"};
}
enum class GroupScore : uint8_t { largest, two_largest };
constexpr std::array<std::string_view, 2> enum_names(GroupScore) {
  return {"largest", "two_largest"};
}

struct MoeRoute {
  static constexpr std::string_view kName = "moe_route";
  int64_t experts = 0, top_k = 0, groups = 1, topk_groups = 1;
  RouteScore score = RouteScore::softmax;
  GroupScore group_score = GroupScore::largest;
  bool bias = false, normalize = false;
  float scale = 1, jitter = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    const bool grouped = groups >= 1 && experts % groups == 0 && topk_groups >= 1 && topk_groups <= groups;
    if (x.size() != 1 || x[0].width != experts || top_k < 1 || !grouped || top_k > experts / groups * topk_groups)
      return shape_error("moe_route takes logits of `experts` columns, and top_k experts of whole groups");
    if (score == RouteScore::sparsemixer && (top_k != 2 || groups != 1 || bias))
      return shape_error("sparsemixer chooses 2 experts, without groups and bias");
    if (group_score == GroupScore::two_largest && groups > 1 && experts / groups < 2)
      return shape_error("groups of one expert have no two largest scores");
    return std::vector<ValueSpec>{{x[0].rows, top_k, DType::i32}, {x[0].rows, top_k, DType::f32}};
  }
  void fields(auto&& f) {
    f("experts", experts), f("top_k", top_k), f("groups", groups), f("topk_groups", topk_groups), f("score", score),
        f("group_score", group_score), f("bias", bias), f("normalize", normalize), f("scale", scale),
        f("jitter", jitter);
  }
  bool operator==(const MoeRoute&) const = default;
};

}  // namespace pinion
