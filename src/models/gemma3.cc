// Gemma 3 (text): Gemma 2's block without its soft caps, with norms on each query and key head; five sliding layers,
// whose rope has a base of its own, to each full one. The text model of the vision models is the same.
#include "models/blocks.h"
#include "models/family_list.h"
#include "models/gemma2.h"

namespace pinion::gemma3 {

Result<ModelConfig> config(const ConfigReader& outer, const ModelOverrides& overrides) {
  PINION_TRY(auto text, outer.find_section("text_config"));
  const ConfigReader& json = text ? *text : outer;
  const FamilyDefaults defaults{.tie_embeddings = true,
                                .rope_theta = 1e6,
                                .activation = "gelu_pytorch_tanh",
                                .head_dim = 256,
                                .max_position = 131072};
  PINION_TRY(auto c, gemma2::common_config(json, overrides, defaults, 0, 0));
  c.qk_norm = true;
  // Of `pattern` layers the last sees everything. 5.x files write the key with an underscore, or layer_types.
  const char* key = json.has("_sliding_window_pattern") ? "_sliding_window_pattern" : "sliding_window_pattern";
  PINION_TRY(int64_t pattern, json.int_or(key, 6, {1, 4096}));
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t) { return true; }));
  if (c.sliding_window && !json.has("layer_types")) {
    for (int64_t i = pattern - 1; i < c.layers; i += pattern) c.sliding_layers[i] = false;
  }
  if (!c.sliding_rope) {  // absent keys mean 10000 there
    c.sliding_rope = RopeSpec{.rotary_dim = c.rope.rotary_dim, .theta = 10000, .max_position = c.max_position};
  }
  return c;
}

void build(Builder& b, const ModelConfig& c) {
  decoder(b, c, gemma2::layer);
}

}  // namespace pinion::gemma3
