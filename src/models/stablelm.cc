// StableLM: Llama's projections between layer norms with biases, rope on a quarter of each head; optional biases, head
// norms, and attention and MLP in parallel on one norm.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::stablelm {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const AttentionOptions o{.qk_norm = c.qk_norm ? QkNorm::layer_list : QkNorm::none,
                           .qkv_bias = c.attention_bias,
                           .q_norm = "q_layernorm",
                           .k_norm = "k_layernorm"};
  const Value h = norm(b, c, w / "input_layernorm", x);
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  const Value m = c.parallel_residual ? h : norm(b, c, w / "post_attention_layernorm", x);
  return b.add(x, gated_mlp(b, c, w / "mlp", m), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c,
             read_decoder_config(json, {.norm_eps = 1e-5, .partial_rotary = 0.25, .max_position = 4096}, overrides));
  c.norm = Norm::layer;
  c.mlp_bias = false;
  c.sliding_window.reset();
  PINION_TRY(c.attention_bias, json.bool_or("use_qkv_bias", false));
  PINION_TRY(c.qk_norm, json.bool_or("qk_layernorm", false));
  PINION_TRY(c.parallel_residual, json.bool_or("use_parallel_residual", false));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::stablelm
