// What config.json says, in the terms of the models: one struct for the decoder families, filled from the key style
// before transformers 5 (rope_theta, rope_scaling) and from that of 5.x (rope_parameters).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/config_reader.h"
#include "graph/ops/moe_route.h"
#include "graph/rope_spec.h"
#include "tensor/dtype.h"

namespace pinion {

enum class Norm : uint8_t { rms, layer };

struct MoeConfig {  // experts == 0: a dense model
  int64_t experts = 0, top_k = 0, intermediate_size = 0;
  int64_t shared_intermediate_size = 0;  // of all shared experts together; 0: none
  int64_t groups = 1, topk_groups = 1;
  RouteScore score = RouteScore::softmax;
  GroupScore group_score = GroupScore::largest;
  bool normalize = false, score_bias = false;
  float scale = 1, jitter = 0, swiglu_limit = 0;
  std::vector<bool> sparse;  // by layer: has experts
};

struct MlaConfig {  // multi-head latent attention; rank == 0: none
  int64_t rank = 0, q_rank = 0, nope = 0, rope = 0, v = 0;
  float scale = 1;
  bool interleaved = true;
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0;
  int64_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t max_position = 0;
  Norm norm = Norm::rms;
  float norm_eps = 1e-6f, norm_offset = 0;  // the offset is added to the norms' weights (Gemma's 1 + w)
  bool norm_bias = true;                    // of layer norms
  Activation activation = Activation::silu;
  bool tie_embeddings = false, attention_bias = false, mlp_bias = false, head_bias = false;
  std::optional<int64_t> sliding_window;
  std::vector<bool> sliding_layers;      // by layer; empty: none slides
  RopeSpec rope;                         // rotary_dim 0: no rotary embedding
  std::optional<RopeSpec> sliding_rope;  // of the sliding layers, where it differs (Gemma 3)
  std::vector<bool> rope_layers;         // by layer; empty: all rotate (SmolLM3)
  bool rope_interleaved = false;
  float attention_scale = 0;  // of q·k; 0: head_dim^-0.5
  float attention_softcap = 0, alibi = 0;
  bool qk_norm = false;                       // norms on queries and keys, where a family has them by option
  bool parallel_residual = false;             // attention and MLP read the same x, where a family has that by option
  int32_t parallel_norms = 1;                 // and each a norm of its own, or both one (Falcon)
  bool post_norm = false, final_norm = true;  // norms after each branch instead of before; a norm before the head (OPT)
  bool norm_residual = false;                 // what a branch is added to is the normed x (BLOOM)
  bool scale_by_layer = false;                // scores are divided by the layer's number from 1 (GPT-2)
  int64_t embed_size = 0;                     // of the embeddings, where it differs from hidden_size; 0: it does not
  float embed_scale = 1, residual_scale = 1, logit_scale = 1, logit_softcap = 0;
  MoeConfig moe;
  MlaConfig mla;
  DType dtype = DType::bf16;  // of the checkpoint, unless the build asks for another
};

struct ModelOverrides {  // --rope_theta, --rope_scaling_factor, --dtype
  std::optional<double> rope_theta, rope_scaling_factor;
  std::optional<DType> dtype;
};

struct FamilyDefaults {  // where families differ when a key is absent
  bool tie_embeddings = false;
  double rope_theta = 10000;
  double norm_eps = 1e-6;
  std::string_view activation = "silu";
  bool rope = true;           // false: the family never rotates
  double partial_rotary = 1;  // of the head's columns
  int64_t head_dim = 0;       // 0: hidden_size / heads
  int64_t mlp_factor = 0;     // intermediate_size in terms of hidden_size; 0: the key is required
  int64_t max_position = 2048;
};

// Reads the keys that decoders share, under the names of any family (n_head, num_attention_heads), checks each number's
// range and that they fit each other.
Result<ModelConfig> read_decoder_config(const ConfigReader& json, const FamilyDefaults& defaults,
                                        const ModelOverrides& overrides);

// The positions a model may use: max_position_embeddings, times the factor where the scaling stretches it afterwards.
int64_t context_length(const ModelConfig& config);

// "layer_types", else the window on the layers for which `slides(layer)` holds.
Status read_sliding_layers(const ConfigReader& json, ModelConfig& config,
                           bool (*slides)(const ConfigReader&, int64_t layer));
// The window of Qwen2 and its descendants: only with use_sliding_window, on the layers from max_window_layers on.
Status read_optional_window(const ConfigReader& json, ModelConfig& config);

// Refuses by name the options that a family has and Pinion has not: each must be absent or false.
Status refuse_options(const ConfigReader& json, std::initializer_list<std::string_view> keys);

// `x` as the checkpoint's type holds it: what a model multiplies with when it keeps a factor in that type.
float rounded(float x, DType type);

}  // namespace pinion
