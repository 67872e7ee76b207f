#include "models/moe.h"

#include <fmt/format.h>

#include <algorithm>

#include "models/blocks.h"

namespace pinion {
namespace {

// One matrix per expert, each its own tensor or a run of rows of the one that stacks them all: `first` rows into the
// expert's `per_expert`.
void add_parts(WeightUse& use, const MoeConfig& m, const Scope& experts, std::string_view name, int64_t rows,
               const std::string& stacked, int64_t per_expert, int64_t first) {
  for (int64_t e = 0; e < m.experts; ++e) {
    use.parts.push_back({.name = (experts / e / name).tensor("weight"),
                         .rows = rows,
                         .fused = {stacked, m.experts * per_expert, e * per_expert + first, rows, rows}});
  }
}

// x times one row of weights, a vector to whoever packs it.
Value row_product(Builder& b, const Scope& w, Value x) {
  const int64_t in = b.graph().spec(x).width;
  return b.node(Linear{.in = in, .out = 1}, {x}, w, {{"weight", 1, in, {{.name = w.tensor("weight"), .rows = in}}}})[0];
}

Value shared_expert(Builder& b, const ModelConfig& c, const Scope& w, Value x) {
  ModelConfig shared = c;
  shared.intermediate_size = c.moe.shared_intermediate_size;
  return gated_mlp(b, shared, w, x);
}

}  // namespace

Routing choose_experts(Builder& b, const ModelConfig& c, const Scope& router, Value logits) {
  const MoeConfig& m = c.moe;
  const MoeRoute op{.experts = m.experts,
                    .top_k = m.top_k,
                    .groups = m.groups,
                    .topk_groups = m.topk_groups,
                    .score = m.score,
                    .group_score = m.group_score,
                    .bias = m.score_bias,
                    .normalize = m.normalize,
                    .scale = m.scale,
                    .jitter = m.jitter};
  std::vector<WeightUse> weights;
  if (m.score_bias)
    weights.push_back({"bias", 1, m.experts, {{.name = router.tensor("e_score_correction_bias"), .rows = m.experts}}});
  const auto out = b.node(op, {logits}, router, std::move(weights));
  return {out[0], out[1]};
}

Value moe_mlp(Builder& b, const ModelConfig& c, const Scope& w, Value x, const MoeNames& names) {
  const MoeConfig& m = c.moe;
  const int64_t width = m.intermediate_size;
  const Scope stacked = names.stacked.path().empty() ? w : names.stacked;
  const Value logits =
      b.linear(x, w / names.router, m.experts, {.fused = {stacked / "gate", m.experts, 0, m.experts, m.experts}});
  const Routing routing = choose_experts(b, c, w / names.router, logits);

  const Scope experts = w / "experts";
  WeightUse gate_up{"weight", m.experts * 2 * width, c.hidden_size, {}, true};
  const std::string both = (stacked / "experts").tensor("gate_up_proj");
  add_parts(gate_up, m, experts, names.gate, width, both, 2 * width, 0);
  add_parts(gate_up, m, experts, names.up, width, both, 2 * width, width);
  const MoeLinear up{.experts = m.experts,
                     .top_k = m.top_k,
                     .in = c.hidden_size,
                     .out = 2 * width,
                     .epilogue = ExpertEpilogue::gated,
                     .act = c.activation,
                     .shard = Shard::rows};
  const Value h = b.node(up, {x, routing.ids}, experts / "gate_up_proj", {std::move(gate_up)})[0];
  WeightUse down_use{"weight", m.experts * c.hidden_size, width, {}};
  add_parts(down_use, m, experts, names.down, c.hidden_size, (stacked / "experts").tensor("down_proj"), c.hidden_size,
            0);
  const MoeLinear down{.experts = m.experts,
                       .top_k = m.top_k,
                       .in = width,
                       .out = c.hidden_size,
                       .per_slot = true,
                       .shard = Shard::cols};
  const Value y = b.node(down, {h, routing.ids}, experts / "down_proj", {std::move(down_use)})[0];

  std::vector<Value> in{y, routing.weights};
  if (!names.shared.empty() && m.shared_intermediate_size > 0) {
    in.push_back(shared_expert(b, c, w / names.shared, x));
    if (!names.shared_gate.empty()) in.push_back(row_product(b, w / names.shared_gate, x));
  }
  return b.node(MoeCombine{.top_k = m.top_k, .width = c.hidden_size}, std::move(in), w)[0];
}

Status read_moe(const ConfigReader& json, ModelConfig& c) {
  MoeConfig& m = c.moe;
  const char* key = "num_experts";
  for (const char* k : {"num_local_experts", "n_routed_experts"}) {
    if (!json.has(key) && json.has(k)) key = k;
  }
  PINION_TRY(m.experts, json.require_int(key, {1, 65536}));
  PINION_TRY(m.top_k, json.int_or("experts_per_token", 0, {0, m.experts}));
  PINION_TRY(m.top_k, json.int_or("num_experts_per_tok", m.top_k > 0 ? m.top_k : 2, {1, m.experts}));
  PINION_TRY(m.intermediate_size, json.int_or("moe_intermediate_size", c.intermediate_size, {1, 1 << 22}));
  PINION_TRY(m.normalize, json.bool_or("norm_topk_prob", false));
  PINION_TRY(const int64_t step, json.int_or("decoder_sparse_step", 1, {1, 65536}));
  PINION_TRY(const auto dense, json.ints_or("mlp_only_layers", {}));
  PINION_TRY(const int64_t first, json.int_or("first_k_dense_replace", 0));
  PINION_TRY(const int64_t every, json.int_or("moe_layer_freq", 1, {1, 65536}));
  m.sparse.resize(c.layers);
  for (int64_t i = 0; i < c.layers; ++i) {
    m.sparse[i] = (i + 1) % step == 0 && i >= first && i % every == 0 && std::ranges::find(dense, i) == dense.end();
  }
  return {};
}

}  // namespace pinion
