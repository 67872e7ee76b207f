// Mixtral: Mistral with two of eight experts for each token, weighted by the softmax over their two logits.
#include "models/blocks.h"
#include "models/family_list.h"
#include "models/moe.h"

namespace pinion::mixtral {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  const Scope mlp = w / "block_sparse_moe";
  return b.add(x, moe_mlp(b, c, mlp, h, {.gate = "w1", .up = "w3", .down = "w2", .stacked = w / "mlp"}), mlp);
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {.rope_theta = 1e6, .norm_eps = 1e-5}, overrides));
  PINION_OK(read_moe(json, c));
  c.moe.normalize = true;
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t) { return true; }));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::mixtral
