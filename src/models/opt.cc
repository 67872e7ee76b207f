// OPT: layer norms and biases, learned positions counted from 2, a ReLU MLP. The 350M model norms after each branch
// instead of before, and its embeddings are narrower than its layers.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::opt {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  const auto before = [&](const char* name, Value v) { return c.post_norm ? v : norm(b, c, w / name, v); };
  const auto after = [&](const char* name, Value v) { return c.post_norm ? norm(b, c, w / name, v) : v; };
  const AttentionOptions o{.qkv_bias = c.attention_bias, .out_bias = c.attention_bias, .out = "out_proj"};
  Value h = attention_block(b, c, w / "self_attn", before("self_attn_layer_norm", x), i, o);
  x = after("self_attn_layer_norm", b.add(x, h, w / "self_attn"));
  h = mlp(b, c, w, before("final_layer_norm", x), {.up = "fc1", .down = "fc2"});
  return after("final_layer_norm", b.add(x, h, w / "fc2"));
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  const FamilyDefaults defaults{.tie_embeddings = true, .norm_eps = 1e-5, .activation = "relu", .rope = false};
  PINION_TRY(auto c, read_decoder_config(json, defaults, overrides));
  c.norm = Norm::layer;
  c.kv_heads = c.heads;
  c.sliding_window.reset();
  PINION_TRY(c.attention_bias, json.bool_or("enable_bias", true));
  c.mlp_bias = c.attention_bias;
  PINION_TRY(bool pre_norm, json.bool_or("do_layer_norm_before", true));
  PINION_TRY(bool no_final_norm, json.bool_or("_remove_final_layer_norm", false));
  c.post_norm = !pre_norm;
  c.final_norm = pre_norm && !no_final_norm;
  PINION_TRY(c.embed_size, json.int_or("word_embed_proj_dim", c.hidden_size, {1, 1 << 20}));
  PINION_TRY(bool affine, json.bool_or("layer_norm_elementwise_affine", true));
  if (!affine) return json.error("layer_norm_elementwise_affine", "norms without weights are not implemented");
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  const Scope w("model.decoder");
  decoder(b, c, layer,
          {.embed = w / "embed_tokens",
           .layers = w / "layers",
           .norm = c.final_norm ? w / "final_layer_norm" : Scope(),
           .positions = w / "embed_positions",
           .position_offset = 2,
           .project_in = w / "project_in",
           .project_out = w / "project_out"});
}

}  // namespace pinion::opt
