// GLM-4: norms before and after attention and MLP, biases on queries, keys and values, interleaved rope on half of each
// head.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::glm4 {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  h = attention_block(b, c, w / "self_attn", h, i, {.qkv_bias = c.attention_bias});
  x = b.add(x, norm(b, c, w / "post_self_attn_layernorm", h), w / "self_attn");
  h = gated_mlp(b, c, w / "mlp", norm(b, c, w / "post_attention_layernorm", x));
  return b.add(x, norm(b, c, w / "post_mlp_layernorm", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  const FamilyDefaults defaults{.norm_eps = 1.5625e-07, .partial_rotary = 0.5, .head_dim = 128, .max_position = 131072};
  PINION_TRY(auto c, read_decoder_config(json, defaults, overrides));
  PINION_TRY(c.attention_bias, json.bool_or("attention_bias", true));
  c.mlp_bias = false;
  c.sliding_window.reset();
  c.rope_interleaved = true;
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::glm4
