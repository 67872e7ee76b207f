// OLMo 2: norms after attention and MLP instead of before, and over all queries and all keys together.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::olmo2 {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const AttentionOptions o{.qk_norm = QkNorm::full, .qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  Value h = attention_block(b, c, w / "self_attn", x, i, o);
  x = b.add(x, norm(b, c, w / "post_attention_layernorm", h), w / "self_attn");
  h = gated_mlp(b, c, w / "mlp", x);
  return b.add(x, norm(b, c, w / "post_feedforward_layernorm", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {.norm_eps = 1e-5}, overrides));
  c.mlp_bias = false;
  c.sliding_window.reset();
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::olmo2
