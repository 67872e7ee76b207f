// Cohere (Command R): attention and SwiGLU read one layer norm without bias and are added together; interleaved rope,
// optional norms on each head, scaled logits.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::cohere {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qk_norm = c.qk_norm ? QkNorm::layer_heads : QkNorm::none,
                           .qkv_bias = c.attention_bias,
                           .out_bias = c.attention_bias};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  return b.add(x, gated_mlp(b, c, w / "mlp", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c,
             read_decoder_config(json, {.tie_embeddings = true, .norm_eps = 1e-5, .max_position = 8192}, overrides));
  c.norm = Norm::layer;
  c.norm_bias = false;
  c.mlp_bias = false;
  c.sliding_window.reset();
  c.rope_interleaved = true;
  PINION_TRY(c.qk_norm, json.bool_or("use_qk_norm", false));
  PINION_TRY(double scale, json.float_or("logit_scale", 0.0625, {1e-6, 1e6}));
  c.logit_scale = static_cast<float>(scale);
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::cohere
