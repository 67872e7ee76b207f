// Qwen3 dense: the Llama block with an RMS norm on each query and key head, and an explicit head_dim.
#include "models/blocks.h"
#include "models/llama.h"

namespace pinion::qwen3 {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = b.rms_norm(x, w / "input_layernorm", c.norm_eps);
  const AttentionOptions o{.qk_norm = true, .qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  h = b.rms_norm(x, w / "post_attention_layernorm", c.norm_eps);
  return b.add(x, gated_mlp(b, c, w / "mlp", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {}, overrides));
  c.mlp_bias = false;
  PINION_TRY(c.head_dim, json.int_or("head_dim", 128, {2, 4096}));  // the class default, whatever hidden_size says
  if (c.head_dim % 2) return json.error("head_dim", "must be even");
  c.rope.rotary_dim = static_cast<int32_t>(c.head_dim);
  PINION_TRY(bool slides, json.bool_or("use_sliding_window", false));
  if (!slides) c.sliding_window.reset();
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader& j, int64_t i) {
    const auto first = j.int_or("max_window_layers", 28);
    return first.ok() && i >= *first;
  }));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::qwen3
