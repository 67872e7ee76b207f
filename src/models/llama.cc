// Llama 2, 3, 3.1 and 3.2: pre-norm, grouped-query attention with rope, SwiGLU; optional biases and tied embeddings.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::llama {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = b.rms_norm(x, w / "input_layernorm", c.norm_eps);
  h = attention_block(b, c, w / "self_attn", h, i, {.qkv_bias = c.attention_bias, .out_bias = c.attention_bias});
  x = b.add(x, h, w / "self_attn");
  h = b.rms_norm(x, w / "post_attention_layernorm", c.norm_eps);
  return b.add(x, gated_mlp(b, c, w / "mlp", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {}, overrides));
  c.sliding_window.reset();  // the family has none; some files carry the key
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::llama
