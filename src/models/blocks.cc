#include "models/blocks.h"

#include <cmath>

namespace pinion {

Value attention_block(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t layer, AttentionOptions o) {
  const LinearOptions in{.bias = o.qkv_bias, .shard = Shard::rows};
  Value q = b.linear(x, w / "q_proj", c.heads * c.head_dim, in);
  Value k = b.linear(x, w / "k_proj", c.kv_heads * c.head_dim, in);
  const Value v = b.linear(x, w / "v_proj", c.kv_heads * c.head_dim, in);
  if (o.qk_norm) {
    q = b.rms_norm(q, w / "q_norm", c.norm_eps, c.head_dim);
    k = b.rms_norm(k, w / "k_norm", c.norm_eps, c.head_dim);
  }
  q = b.rope(q, w / "q_proj", {.heads = c.heads, .head_dim = c.head_dim, .rotary_dim = c.rope.rotary_dim});
  k = b.rope(k, w / "k_proj", {.heads = c.kv_heads, .head_dim = c.head_dim, .rotary_dim = c.rope.rotary_dim});
  const Value y = b.attention(q, k, v, w,
                              {.heads = c.heads,
                               .kv_heads = c.kv_heads,
                               .head_dim = c.head_dim,
                               .scale = 1 / std::sqrt(static_cast<float>(c.head_dim)),
                               .window = b.graph().kv_layers[layer].window,
                               .layer = static_cast<int32_t>(layer)});
  return b.linear(y, w / "o_proj", c.hidden_size, {.bias = o.out_bias, .shard = Shard::cols});
}

Value gated_mlp(Builder& b, const ModelConfig& c, const Scope& w, Value x) {
  const LinearOptions in{.bias = c.mlp_bias, .shard = Shard::rows};
  const Value gate = b.linear(x, w / "gate_proj", c.intermediate_size, in);
  const Value up = b.linear(x, w / "up_proj", c.intermediate_size, in);
  return b.linear(b.gated_act(gate, up, w, c.activation), w / "down_proj", c.hidden_size,
                  {.bias = c.mlp_bias, .shard = Shard::cols});
}

void decoder(Builder& b, const ModelConfig& c, Layer layer) {
  Graph& g = b.graph();
  g.vocab_size = c.vocab_size;
  g.context_length = context_length(c);
  g.ropes = {c.rope};
  for (int64_t i = 0; i < c.layers; ++i) {
    const bool slides = !c.sliding_layers.empty() && c.sliding_layers[i];
    g.kv_layers.push_back({c.kv_heads, c.head_dim, slides ? static_cast<int32_t>(*c.sliding_window) : 0});
  }
  const Scope model("model");
  Value x = b.embed(model / "embed_tokens", c.vocab_size, c.hidden_size);
  for (int64_t i = 0; i < c.layers; ++i) x = layer(b, c, model / "layers" / i, x, i);
  x = b.rms_norm(b.select_rows(x, model / "norm"), model / "norm", c.norm_eps);
  g.logits =
      b.linear(x, c.tie_embeddings ? model / "embed_tokens" : Scope("lm_head"), c.vocab_size, {.shard = Shard::rows});
}

}  // namespace pinion
