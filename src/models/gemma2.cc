// Gemma 2: Gemma with norms before and after attention and MLP, soft caps on scores and logits, and a sliding window on
// every other layer. Its scale comes from query_pre_attn_scalar.
#include <cmath>

#include "models/blocks.h"
#include "models/family_list.h"
#include "models/gemma2.h"

namespace pinion::gemma2 {

Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const AttentionOptions o{
      .qk_norm = c.qk_norm ? QkNorm::head : QkNorm::none, .qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  Value h = attention_block(b, c, w / "self_attn", norm(b, c, w / "input_layernorm", x), i, o);
  x = b.add(x, norm(b, c, w / "post_attention_layernorm", h), w / "self_attn");
  h = gated_mlp(b, c, w / "mlp", norm(b, c, w / "pre_feedforward_layernorm", x));
  return b.add(x, norm(b, c, w / "post_feedforward_layernorm", h), w / "mlp");
}

// An absent key means the default, null means no cap.
static Result<float> soft_cap(const ConfigReader& json, std::string_view key, double absent) {
  const auto it = json.json().find(key);
  PINION_TRY(double cap, json.float_or(key, it == json.json().end() ? absent : 0, {0, 1e6}));
  return static_cast<float>(cap);
}

Result<ModelConfig> common_config(const ConfigReader& json, const ModelOverrides& overrides, const FamilyDefaults& d,
                                  double attention_cap, double logit_cap) {
  PINION_TRY(auto c, read_decoder_config(json, d, overrides));
  c.norm_offset = 1;
  c.mlp_bias = false;
  c.embed_scale = rounded(std::sqrt(static_cast<float>(c.hidden_size)), c.dtype);
  PINION_TRY(double scalar, json.float_or("query_pre_attn_scalar", 256, {1e-3, 1e6}));
  c.attention_scale = static_cast<float>(1 / std::sqrt(scalar));
  PINION_TRY(c.attention_softcap, soft_cap(json, "attn_logit_softcapping", attention_cap));
  PINION_TRY(c.logit_softcap, soft_cap(json, "final_logit_softcapping", logit_cap));
  PINION_OK(refuse_options(json, {"use_bidirectional_attention"}));
  if (!json.json().contains("sliding_window")) c.sliding_window = 4096;
  return c;
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  const FamilyDefaults defaults{
      .tie_embeddings = true, .activation = "gelu_pytorch_tanh", .head_dim = 256, .max_position = 8192};
  PINION_TRY(auto c, common_config(json, overrides, defaults, 50, 30));
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t i) { return i % 2 == 0; }));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::gemma2
