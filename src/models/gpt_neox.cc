// GPT-NeoX, Pythia: layer norms and biases, rope on a quarter of each head, attention and MLP in parallel on norms of
// their own; queries, keys and values of a head lie side by side.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::gpt_neox {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const AttentionOptions o{.qkv_bias = c.attention_bias,
                           .out_bias = c.attention_bias,
                           .out = "dense",
                           .qkv = "query_key_value",
                           .grouped = true};
  const Value h = attention_block(b, c, w / "attention", norm(b, c, w / "input_layernorm", x), i, o);
  const Value y = b.add(x, h, w / "attention");
  const Value m = norm(b, c, w / "post_attention_layernorm", c.parallel_residual ? x : y);
  return b.add(y, mlp(b, c, w / "mlp", m, {.up = "dense_h_to_4h", .down = "dense_4h_to_h"}), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c,
             read_decoder_config(json, {.norm_eps = 1e-5, .activation = "gelu", .partial_rotary = 0.25}, overrides));
  c.norm = Norm::layer;
  c.mlp_bias = true;
  c.kv_heads = c.heads;  // whatever the file says
  c.sliding_window.reset();
  PINION_TRY(c.attention_bias, json.bool_or("attention_bias", true));
  PINION_TRY(c.parallel_residual, json.bool_or("use_parallel_residual", true));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  const Scope w("gpt_neox");
  decoder(
      b, c, layer,
      {.embed = w / "embed_in", .layers = w / "layers", .norm = w / "final_layer_norm", .head = Scope("embed_out")});
}

}  // namespace pinion::gpt_neox
