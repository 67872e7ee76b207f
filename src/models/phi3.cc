// Phi-3, 3.5 and 4: the Llama block with fused weights, rope stretched by longrope, a sliding window on every layer.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::phi3 {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  return b.add(x, gated_mlp(b, c, w / "mlp", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {.norm_eps = 1e-5, .max_position = 4096}, overrides));
  c.mlp_bias = false;
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t) { return true; }));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::phi3
