// StarCoder2: grouped-query attention and an MLP without a gate between layer norms, biases everywhere, a sliding
// window.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::starcoder2 {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  return b.add(x, mlp(b, c, w / "mlp", h, {.up = "c_fc", .down = "c_proj"}), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  const FamilyDefaults defaults{
      .tie_embeddings = true, .norm_eps = 1e-5, .activation = "gelu_pytorch_tanh", .max_position = 4096};
  PINION_TRY(auto c, read_decoder_config(json, defaults, overrides));
  c.norm = Norm::layer;
  PINION_TRY(c.attention_bias, json.bool_or("use_bias", true));
  c.mlp_bias = c.attention_bias;
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t) { return true; }));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::starcoder2
