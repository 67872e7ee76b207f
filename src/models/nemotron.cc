// Nemotron: layer norms of 1 + w with biases, rope on half of each head, a squared-ReLU MLP without a gate.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::nemotron {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  return b.add(x, mlp(b, c, w / "mlp", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  const FamilyDefaults defaults{.norm_eps = 1e-5, .activation = "relu2", .partial_rotary = 0.5, .max_position = 4096};
  PINION_TRY(auto c, read_decoder_config(json, defaults, overrides));
  c.norm = Norm::layer;
  c.norm_offset = 1;
  c.sliding_window.reset();
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::nemotron
