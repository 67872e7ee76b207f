// Gemma: the Llama block with norms of 1 + w, a GELU gate, and embeddings scaled by the root of their width.
#include <cmath>

#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::gemma {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  return b.add(x, gated_mlp(b, c, w / "mlp", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c,
             read_decoder_config(json, {.tie_embeddings = true, .head_dim = 256, .max_position = 8192}, overrides));
  c.norm_offset = 1;
  c.mlp_bias = false;
  c.sliding_window.reset();
  c.activation = Activation::gelu_tanh;  // also where old files say hidden_act "gelu"
  c.embed_scale = rounded(std::sqrt(static_cast<float>(c.hidden_size)), c.dtype);
  PINION_OK(refuse_options(json, {"use_bidirectional_attention"}));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::gemma
