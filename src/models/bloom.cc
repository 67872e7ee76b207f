// BLOOM: pre-norm with layer norms and biases everywhere, ALiBi instead of positions, a norm on the embedding; queries,
// keys and values of a head lie side by side.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::bloom {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  if (c.norm_residual) x = h;
  const AttentionOptions o{
      .qkv_bias = true, .out_bias = true, .out = "dense", .qkv = "query_key_value", .grouped = true};
  x = b.add(x, attention_block(b, c, w / "self_attention", h, i, o), w / "self_attention");
  h = norm(b, c, w / "post_attention_layernorm", x);
  if (c.norm_residual) x = h;
  return b.add(x, mlp(b, c, w / "mlp", h, {.up = "dense_h_to_4h", .down = "dense_4h_to_h"}), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(
      auto c,
      read_decoder_config(
          json, {.tie_embeddings = true, .norm_eps = 1e-5, .activation = "gelu_new", .rope = false, .mlp_factor = 4},
          overrides));
  c.norm = Norm::layer;
  c.mlp_bias = true;
  c.alibi = 1;
  c.kv_heads = c.heads;
  PINION_TRY(c.norm_residual, json.bool_or("apply_residual_connection_post_layernorm", false));
  PINION_TRY(c.max_position, json.int_or("seq_length", c.max_position, {1, int64_t{1} << 30}));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  const Scope w("transformer");
  decoder(b, c, layer,
          {.embed = w / "word_embeddings",
           .layers = w / "h",
           .norm = w / "ln_f",
           .embed_norm = w / "word_embeddings_layernorm"});
}

}  // namespace pinion::bloom
