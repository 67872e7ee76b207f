// Granite 3: the Llama block with four multipliers, on the embedding, the scores, each branch and the logits.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::granite {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  x = residual(b, c, w / "self_attn", x, attention_block(b, c, w / "self_attn", h, i, o));
  h = norm(b, c, w / "post_attention_layernorm", x);
  return residual(b, c, w / "mlp", x, gated_mlp(b, c, w / "mlp", h));
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {}, overrides));
  c.sliding_window.reset();
  const FloatRange positive{1e-6, 1e6};
  PINION_TRY(double embed, json.float_or("embedding_multiplier", 1, positive));
  PINION_TRY(double attention, json.float_or("attention_multiplier", 1, positive));
  PINION_TRY(double branch, json.float_or("residual_multiplier", 1, positive));
  PINION_TRY(double logits, json.float_or("logits_scaling", 1, positive));
  c.embed_scale = static_cast<float>(embed);
  c.attention_scale = static_cast<float>(attention);
  c.residual_scale = static_cast<float>(branch);
  c.logit_scale = static_cast<float>(1 / logits);
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::granite
