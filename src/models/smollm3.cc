// SmolLM3: the Llama block, with no rotation on every fourth layer.
#include "models/blocks.h"
#include "models/family_list.h"

namespace pinion::smollm3 {

static Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  const AttentionOptions o{.qkv_bias = c.attention_bias, .out_bias = c.attention_bias};
  x = b.add(x, attention_block(b, c, w / "self_attn", h, i, o), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  return b.add(x, gated_mlp(b, c, w / "mlp", h), w / "mlp");
}

Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides) {
  PINION_TRY(auto c,
             read_decoder_config(json, {.tie_embeddings = true, .rope_theta = 2e6, .max_position = 32768}, overrides));
  PINION_TRY(int64_t interval, json.int_or("no_rope_layer_interval", 4, {1, 4096}));
  PINION_TRY(auto rotates, json.find_ints("no_rope_layers", {0, 1}));  // 1: the layer rotates, for all its name
  if (rotates && std::ssize(*rotates) != c.layers) return json.error("no_rope_layers", "needs one entry per layer");
  for (int64_t i = 0; i < c.layers; ++i) {
    c.rope_layers.push_back(rotates ? (*rotates)[i] == 1 : (i + 1) % interval != 0);
  }
  // Without layer_types, the layers that rotate slide.
  PINION_TRY(bool slides, json.bool_or("use_sliding_window", false));
  if (!slides) c.sliding_window.reset();
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t) { return true; }));
  if (c.sliding_window && !json.has("layer_types")) c.sliding_layers = c.rope_layers;
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion::smollm3
