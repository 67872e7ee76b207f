// Qwen2 and 2.5: the Llama block with biases on q, k and v only; layers from max_window_layers on may slide.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::qwen2 {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = b.rms_norm(x, w / "input_layernorm", c.norm_eps);
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, {.qkv_bias = true}), w / "self_attn");
  h = b.rms_norm(x, w / "post_attention_layernorm", c.norm_eps);
  return b.add(x, gated_mlp(b, c, w / "mlp", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {}, overrides));
  c.mlp_bias = false;
  PINION_OK(read_optional_window(json, c));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::qwen2
