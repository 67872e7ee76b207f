// Qwen3 dense: the Llama block with an RMS norm on each query and key head, and an explicit head_dim.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::qwen3 {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = b.rms_norm(x, w / "input_layernorm", c.norm_eps);
  const AttentionOptions o{.qk_norm = QkNorm::head, .qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  h = b.rms_norm(x, w / "post_attention_layernorm", c.norm_eps);
  return b.add(x, gated_mlp(b, c, w / "mlp", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {.head_dim = 128}, overrides));  // whatever hidden_size says
  c.mlp_bias = false;
  PINION_OK(read_optional_window(json, c));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::qwen3
