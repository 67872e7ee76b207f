// GPT-2: pre-norm with layer norms and biases, learned positions, a GELU MLP, weights stored [in, out].
#include <cmath>

#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::gpt2 {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  ModelConfig layer_config = c;
  if (c.scale_by_layer) layer_config.attention_scale /= static_cast<float>(i + 1);
  const AttentionOptions o{.qkv_bias = true, .out_bias = true, .out = "c_proj", .qkv = "c_attn", .transposed = true};
  Value h = attention_block(b, layer_config, w / "attn", norm(b, c, w / "ln_1", x), i, o);
  x = b.add(x, h, w / "attn");
  h = mlp(b, c, w / "mlp", norm(b, c, w / "ln_2", x), {.up = "c_fc", .down = "c_proj", .transposed = true});
  return b.add(x, h, w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  const FamilyDefaults defaults{.tie_embeddings = true,
                                .norm_eps = 1e-5,
                                .activation = "gelu_new",
                                .rope = false,
                                .mlp_factor = 4,
                                .max_position = 1024};
  PINION_TRY(auto c, read_decoder_config(json, defaults, overrides));
  c.norm = Norm::layer;
  c.mlp_bias = true;
  c.kv_heads = c.heads;
  c.sliding_window.reset();
  PINION_TRY(bool scaled, json.bool_or("scale_attn_weights", true));
  c.attention_scale = scaled ? 1 / std::sqrt(static_cast<float>(c.head_dim)) : 1;
  PINION_TRY(c.scale_by_layer, json.bool_or("scale_attn_by_inverse_layer_idx", false));
  PINION_OK(refuse_options(json, {"add_cross_attention"}));
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  const Scope w("transformer");
  decoder(b, c, layer, {.embed = w / "wte", .layers = w / "h", .norm = w / "ln_f", .positions = w / "wpe"});
}

}  // namespace pinion::gpt2
