// Qwen1.5-MoE and Qwen2-MoE: Qwen2 with routed experts and a shared one behind a sigmoid gate; some layers may be
// dense.
#include "models/blocks.h"
#include "models/family_list.h"
#include "models/moe.h"

namespace pinion::qwen2_moe {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, {.qkv_bias = c.attention_bias}), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  const Scope mlp = w / "mlp";
  const MoeNames names{.shared = "shared_expert", .shared_gate = "shared_expert_gate"};
  return b.add(x, c.moe.sparse[i] ? moe_mlp(b, c, mlp, h, names) : gated_mlp(b, c, mlp, h), mlp);
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c, read_decoder_config(json, {}, overrides));
  PINION_OK(read_moe(json, c));
  PINION_TRY(c.attention_bias, json.bool_or("qkv_bias", true));
  c.mlp_bias = false;
  PINION_TRY(c.moe.shared_intermediate_size, json.int_or("shared_expert_intermediate_size", 5632, {0, 1 << 22}));
  PINION_OK(read_optional_window(json, c));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::qwen2_moe
