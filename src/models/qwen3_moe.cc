// Qwen3-MoE: Qwen3's attention, routed experts without a shared one; some layers may be dense.
#include "models/blocks.h"
#include "models/family_list.h"
#include "models/moe.h"

namespace pinion::qwen3_moe {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qk_norm = QkNorm::head, .qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  const Scope mlp = w / "mlp";
  return b.add(x, c.moe.sparse[i] ? moe_mlp(b, c, mlp, h) : gated_mlp(b, c, mlp, h), mlp);
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {}, overrides));
  PINION_OK(read_moe(json, c));
  c.mlp_bias = false;
  PINION_TRY(const bool slides, json.bool_or("use_sliding_window", false));
  if (!slides) c.sliding_window.reset();
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t) { return true; }));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::qwen3_moe
