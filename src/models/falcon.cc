// Falcon. The old block (7B, RW): one norm before parallel attention and MLP, or two in sequence; the new one (40B,
// 180B, 11B): grouped-query attention, parallel, with a norm for each or one for both. RW has ALiBi, the others rope.
#include <cmath>

#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::falcon {

static Value attention(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const AttentionOptions o{.qkv_bias = c.attention_bias,
                           .out_bias = c.attention_bias,
                           .out = "dense",
                           .qkv = "query_key_value",
                           .grouped = c.kv_heads > 1};  // one KV head: all queries, the key, the value
  return attention_block(b, c, w / "self_attention", x, i, o);
}

static Value feed_forward(Builder& b, const ModelConfig& c, const Scope& w, Value x) {
  return mlp(b, c, w / "mlp", x, {.up = "dense_h_to_4h", .down = "dense_4h_to_h"});
}

static Value parallel_layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const Value h = norm(b, c, w / "input_layernorm", x);
  const Value y = b.add(x, attention(b, c, w, h, i), w / "self_attention");
  return b.add(y, feed_forward(b, c, w, h), w / "mlp");
}

static Value two_norm_layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const Value y = b.add(x, attention(b, c, w, norm(b, c, w / "ln_attn", x), i), w / "self_attention");
  return b.add(y, feed_forward(b, c, w, norm(b, c, w / "ln_mlp", x)), w / "mlp");
}

static Value sequential_layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  x = b.add(x, attention(b, c, w, norm(b, c, w / "input_layernorm", x), i), w / "self_attention");
  return b.add(x, feed_forward(b, c, w, norm(b, c, w / "post_attention_layernorm", x)), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(bool alibi, json.bool_or("alibi", false));
  PINION_TRY(
      auto c,
      read_decoder_config(
          json, {.tie_embeddings = true, .norm_eps = 1e-5, .activation = "gelu", .rope = !alibi, .mlp_factor = 4},
          overrides));
  c.norm = Norm::layer;
  c.sliding_window.reset();
  // The files of the first release name KV heads only where there are groups of them.
  PINION_TRY(bool grouped, json.bool_or("new_decoder_architecture", json.has("n_head_kv")));
  PINION_TRY(bool multi_query, json.bool_or("multi_query", true));
  PINION_TRY(bool parallel, json.bool_or("parallel_attn", true));
  PINION_TRY(int64_t norms, json.int_or("num_ln_in_parallel_attn", 2, {1, 2}));
  if (!grouped) c.kv_heads = multi_query ? 1 : c.heads;
  c.parallel_residual = grouped || parallel;
  c.parallel_norms = grouped ? static_cast<int32_t>(norms) : 1;
  PINION_TRY(c.attention_bias, json.bool_or("bias", false));
  c.mlp_bias = c.attention_bias;
  if (alibi) c.alibi = 1 / std::sqrt(static_cast<float>(c.head_dim));  // Falcon scales the bias with the scores
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  const Scope w("transformer");
  decoder(b, c,
          !c.parallel_residual    ? sequential_layer
          : c.parallel_norms == 2 ? two_norm_layer
                                  : parallel_layer,
          {.embed = w / "word_embeddings", .layers = w / "h", .norm = w / "ln_f"});
}

}  // namespace pinion::falcon
