// Phi-3.5-MoE: layer norms, biases by option, and two of sixteen experts chosen by sparsemixer, whose weights are not
// normalised.
#include "models/blocks.h"
#include "models/family_list.h"
#include "models/moe.h"

namespace pinion::phimoe {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  const Scope mlp = w / "block_sparse_moe";
  return b.add(x, moe_mlp(b, c, mlp, h, {.gate = "w1", .up = "w3", .down = "w2", .stacked = w / "mlp"}), mlp);
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {.rope_theta = 1e6, .norm_eps = 1e-5}, overrides));
  PINION_OK(read_moe(json, c));
  PINION_TRY(c.head_bias, json.bool_or("lm_head_bias", false));
  PINION_TRY(const double jitter, json.float_or("router_jitter_noise", 0.01, {0, 1}));
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t) { return true; }));
  c.norm = Norm::layer;
  c.moe.score = RouteScore::sparsemixer;
  c.moe.jitter = static_cast<float>(jitter);
  if (c.moe.top_k != 2) return json.error("num_experts_per_tok", "sparsemixer chooses two experts");
  if (const auto rope = json.find_section("rope_scaling"); rope.ok() && *rope) {  // the factor on cos and sin
    PINION_TRY(const auto near, (*rope)->find_float("short_mscale", {1e-3, 1e3}));
    PINION_TRY(const auto far, (*rope)->find_float("long_mscale", {1e-3, 1e3}));
    if (near != far) return json.error("rope_scaling.long_mscale", "a short_mscale that differs is not implemented");
    if (far) c.rope.attention_factor = *far;
  }
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::phimoe
