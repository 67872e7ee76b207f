#include "models/blocks.h"

#include <cmath>

namespace pinion {
namespace {

// Where the queries, keys and values (index 0, 1, 2) lie in the tensor that fuses them.
FusedLinear fused_qkv(const ModelConfig& c, const Scope& scope, const AttentionOptions& o, int index) {
  const int64_t d = c.head_dim, group = o.grouped ? c.heads / c.kv_heads : c.heads, keys = o.grouped ? 1 : c.kv_heads;
  const int64_t before[] = {0, group, group + keys};  // heads, in a block that repeats
  return {.scope = scope,
          .rows = (c.heads + 2 * c.kv_heads) * d,
          .first = before[index] * d,
          .block = (index == 0 ? group : keys) * d,
          .stride = (group + 2 * keys) * d};
}

Value head_norm(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t heads, QkNorm kind) {
  const LayerNorm layer{.width = c.head_dim, .eps = c.norm_eps};
  switch (kind) {
    case QkNorm::none:
      return x;
    case QkNorm::head:
      return b.rms_norm(x, w, c.norm_eps, c.head_dim, c.norm_offset);
    case QkNorm::full:
      return b.rms_norm(x, w, c.norm_eps, 0, c.norm_offset);
    case QkNorm::layer:
      return b.layer_norm(x, w, {.width = layer.width, .eps = layer.eps, .bias = true});
    case QkNorm::layer_heads:
      return b.layer_norm(x, w, {.width = layer.width, .eps = layer.eps, .groups = heads});
    case QkNorm::layer_list: {
      WeightUse weight{.role = "weight", .rows = 1, .cols = heads * c.head_dim, .parts = {}};
      for (int64_t h = 0; h < heads; ++h) {
        weight.parts.push_back({.name = (w / "norms" / h).tensor("weight"), .rows = c.head_dim});
      }
      return b.node(LayerNorm{.width = layer.width, .eps = layer.eps, .groups = heads}, {x}, w, {weight}).at(0);
    }
  }
  return x;
}

bool slides(const ModelConfig& c, int64_t layer) {
  return c.sliding_window && !c.sliding_layers.empty() && c.sliding_layers[layer];
}

}  // namespace

Attention attention_op(Builder& b, const ModelConfig& c, int64_t layer) {
  return {.heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .scale = c.attention_scale > 0 ? c.attention_scale : 1 / std::sqrt(static_cast<float>(c.head_dim)),
          .window = b.graph().kv_layers[layer].window,
          .layer = static_cast<int32_t>(layer),
          .softcap = c.attention_softcap,
          .alibi = c.alibi,
          .alibi_heads = c.alibi > 0 ? c.heads : 0};
}

Value attention_block(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t layer,
                      const AttentionOptions& o) {
  const auto project = [&](std::string_view name, int64_t heads, int index) {
    return b.linear(x, w / name, heads * c.head_dim,
                    {.bias = o.qkv_bias,
                     .shard = Shard::rows,
                     .fused = fused_qkv(c, w / o.qkv, o, index),
                     .transposed = o.transposed});
  };
  Value q = project("q_proj", c.heads, 0), k = project("k_proj", c.kv_heads, 1);
  const Value v = project("v_proj", c.kv_heads, 2);
  q = head_norm(b, c, w / o.q_norm, q, c.heads, o.qk_norm);
  k = head_norm(b, c, w / o.k_norm, k, c.kv_heads, o.qk_norm);
  if (c.rope.rotary_dim > 0 && (c.rope_layers.empty() || c.rope_layers[layer])) {
    Rope rope{.heads = c.heads,
              .head_dim = c.head_dim,
              .rotary_dim = c.rope.rotary_dim,
              .table = c.sliding_rope && slides(c, layer) ? 1 : 0,
              .interleaved = c.rope_interleaved};
    q = b.rope(q, w / "q_proj", rope);
    rope.heads = c.kv_heads;
    k = b.rope(k, w / "k_proj", rope);
  }
  Attention op = attention_op(b, c, layer);
  op.sinks = o.sinks;
  return b.linear(b.attention(q, k, v, w, op), w / o.out, c.hidden_size,
                  {.bias = o.out_bias, .shard = Shard::cols, .transposed = o.transposed});
}

Value gated_mlp(Builder& b, const ModelConfig& c, const Scope& w, Value x) {
  const auto project = [&](std::string_view name, int64_t first) {
    const int64_t n = c.intermediate_size;
    const FusedLinear fused{.scope = w / "gate_up_proj", .rows = 2 * n, .first = first, .block = n, .stride = n};
    return b.linear(x, w / name, n, {.bias = c.mlp_bias, .shard = Shard::rows, .fused = fused});
  };
  const Value gate = project("gate_proj", 0), up = project("up_proj", c.intermediate_size);
  return b.linear(b.gated_act(gate, up, w, c.activation), w / "down_proj", c.hidden_size,
                  {.bias = c.mlp_bias, .shard = Shard::cols});
}

Value mlp(Builder& b, const ModelConfig& c, const Scope& w, Value x, const MlpOptions& o) {
  const LinearOptions in{.bias = c.mlp_bias, .shard = Shard::rows, .fused = {}, .transposed = o.transposed};
  const LinearOptions out{.bias = c.mlp_bias, .shard = Shard::cols, .fused = {}, .transposed = o.transposed};
  x = b.act(b.linear(x, w / o.up, c.intermediate_size, in), w, c.activation);
  return b.linear(x, w / o.down, c.hidden_size, out);
}

Value norm(Builder& b, const ModelConfig& c, const Scope& w, Value x) {
  if (c.norm == Norm::rms) return b.rms_norm(x, w, c.norm_eps, 0, c.norm_offset);
  const int64_t width = b.graph().spec(x).width;
  return b.layer_norm(x, w, {.width = width, .eps = c.norm_eps, .offset = c.norm_offset, .bias = c.norm_bias});
}

Value residual(Builder& b, const ModelConfig& c, const Scope& w, Value x, Value branch) {
  return b.add(x, branch, w, c.residual_scale);
}

Value begin_decoder(Builder& b, const ModelConfig& c, const DecoderNames& names) {
  Graph& g = b.graph();
  g.vocab_size = c.vocab_size;
  g.context_length = context_length(c);
  if (c.rope.rotary_dim > 0) g.ropes = {c.rope};
  if (c.sliding_rope) g.ropes.push_back(*c.sliding_rope);
  for (int64_t i = 0; i < c.layers; ++i) {
    g.kv_layers.push_back({c.kv_heads, c.head_dim, slides(c, i) ? static_cast<int32_t>(*c.sliding_window) : 0});
  }
  const int64_t width = c.embed_size > 0 ? c.embed_size : c.hidden_size;
  Value x = b.embed(names.embed, c.vocab_size, width, c.embed_scale);
  if (width != c.hidden_size) x = b.linear(x, names.project_in, c.hidden_size);
  if (!names.positions.path().empty()) {
    const Value at = b.position_embed(names.positions, c.max_position, c.hidden_size, names.position_offset);
    x = b.add(x, at, names.positions);
  }
  return names.embed_norm.path().empty() ? x : norm(b, c, names.embed_norm, x);
}

void end_decoder(Builder& b, const ModelConfig& c, Value x, const DecoderNames& names) {
  x = b.select_rows(x, names.norm.path().empty() ? names.head : names.norm);
  if (!names.norm.path().empty()) x = norm(b, c, names.norm, x);
  if (c.embed_size > 0 && c.embed_size != c.hidden_size) x = b.linear(x, names.project_out, c.embed_size);
  x = b.linear(x, c.tie_embeddings ? names.embed : names.head, c.vocab_size,
               {.bias = c.head_bias, .shard = Shard::rows});
  if (c.logit_scale != 1 || c.logit_softcap > 0) x = b.soft_cap(x, names.head, c.logit_scale, c.logit_softcap);
  b.graph().logits = x;
}

void decoder(Builder& b, const ModelConfig& c, Layer layer, const DecoderNames& names) {
  Value x = begin_decoder(b, c, names);
  for (int64_t i = 0; i < c.layers; ++i) x = layer(b, c, names.layers / i, x, i);
  end_decoder(b, c, x, names);
}

}  // namespace pinion
