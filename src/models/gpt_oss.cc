// gpt-oss: every other layer slides, an extra logit per head takes attention to nowhere (a sink), biases everywhere,
// and experts with a clamped SwiGLU whose gate and up columns alternate, stacked and stored as [in, out].
#include "models/blocks.h"
#include "models/family_list.h"
#include "models/moe.h"

namespace pinion::gpt_oss {
namespace {

// All experts' matrices of one tensor, and their biases of another: [experts, in, out], [experts, out].
std::vector<WeightUse> stacked(const Scope& experts, const std::string& name, int64_t n, int64_t out, int64_t in) {
  WeightUse weight{"weight", n * out, in, {}};
  for (int64_t e = 0; e < n; ++e) {
    weight.parts.push_back(
        {.name = experts.tensor(name), .rows = out, .fused = {}, .transposed = true, .stack = n, .index = e});
  }
  return {std::move(weight), {"bias", 1, n * out, {{.name = experts.tensor(name + "_bias"), .rows = n * out}}}};
}

Value experts_mlp(Builder& b, const ModelConfig& c, const Scope& w, Value x) {
  const MoeConfig& m = c.moe;
  const Value logits = b.linear(x, w / "router", m.experts, {.bias = true});
  const Routing routing = choose_experts(b, c, w / "router", logits);
  const Scope experts = w / "experts";
  MoeLinear op{.experts = m.experts,
               .top_k = m.top_k,
               .in = c.hidden_size,
               .out = 2 * m.intermediate_size,
               .bias = true,
               .epilogue = ExpertEpilogue::clamped,
               .limit = m.swiglu_limit,
               .shard = Shard::rows};
  const Value h = b.node(op, {x, routing.ids}, experts / "gate_up_proj",
                         stacked(experts, "gate_up_proj", m.experts, op.out, op.in))[0];
  op = {.experts = m.experts,
        .top_k = m.top_k,
        .in = m.intermediate_size,
        .out = c.hidden_size,
        .per_slot = true,
        .bias = true,
        .shard = Shard::cols};
  const Value y =
      b.node(op, {h, routing.ids}, experts / "down_proj", stacked(experts, "down_proj", m.experts, op.out, op.in))[0];
  return b.node(MoeCombine{.top_k = m.top_k, .width = c.hidden_size}, {y, routing.weights}, w)[0];
}

Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qkv_bias = c.attention_bias, .out_bias = c.attention_bias, .sinks = true};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  return b.add(x, experts_mlp(b, c, w / "mlp", h), w / "mlp");
}

}  // namespace

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {.rope_theta = 150000, .norm_eps = 1e-5, .head_dim = 64}, overrides));
  PINION_OK(read_moe(json, c));
  PINION_TRY(c.attention_bias, json.bool_or("attention_bias", true));
  PINION_TRY(const double limit, json.float_or("swiglu_limit", 7, {1e-3, 1e6}));
  c.moe.swiglu_limit = static_cast<float>(limit);
  c.moe.normalize = true;
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t i) { return i % 2 == 0; }));
  if (c.activation != Activation::silu) return json.error("hidden_act", "gpt-oss has its own SwiGLU: \"silu\"");
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::gpt_oss
