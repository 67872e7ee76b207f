// Phi-1, 1.5 and 2: attention and MLP in parallel on one layer norm, biases everywhere, rope on a part of each head, a
// head with a bias.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::phi {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qk_norm = c.qk_norm ? QkNorm::layer : QkNorm::none,
                           .qkv_bias = true,
                           .out_bias = true,
                           .out = "dense",
                           .q_norm = "q_layernorm",
                           .k_norm = "k_layernorm"};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  return b.add(x, mlp(b, c, w / "mlp", h, {.up = "fc1", .down = "fc2"}), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c,
             read_decoder_config(json, {.norm_eps = 1e-5, .activation = "gelu_new", .partial_rotary = 0.5}, overrides));
  c.norm = Norm::layer;
  c.mlp_bias = c.head_bias = true;
  c.sliding_window.reset();
  PINION_TRY(c.qk_norm, json.bool_or("qk_layernorm", false));
  if (c.tie_embeddings) return json.error("tie_word_embeddings", "a tied head with a bias is not implemented");
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer, {.norm = Scope("model.final_layernorm")});
}

}  // namespace pinion::phi
