// What config.json says, in the terms of the models: one struct for the decoder families, filled from the key style
// before transformers 5 (rope_theta, rope_scaling) and from that of 5.x (rope_parameters).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/config_reader.h"
#include "graph/ops/op_base.h"
#include "graph/rope_spec.h"
#include "tensor/dtype.h"

namespace pinion {

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0;
  int64_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t max_position = 0;
  float norm_eps = 1e-6f;
  Activation activation = Activation::silu;
  bool tie_embeddings = false, attention_bias = false, mlp_bias = false;
  std::optional<int64_t> sliding_window;
  std::vector<bool> sliding_layers;  // by layer; empty: none slides
  RopeSpec rope;
  DType dtype = DType::bf16;  // of the checkpoint
};

struct ModelOverrides {  // --rope_theta, --rope_scaling_factor
  std::optional<double> rope_theta, rope_scaling_factor;
};

struct FamilyDefaults {  // where families differ when a key is absent
  bool tie_embeddings = false;
  double rope_theta = 10000;
  double norm_eps = 1e-6;
};

// Reads the keys that the Llama block needs, checks each number's range and that they fit each other.
Result<ModelConfig> read_decoder_config(const ConfigReader& json, const FamilyDefaults& defaults,
                                        const ModelOverrides& overrides);

// The positions a model may use: max_position_embeddings, times the factor where the scaling stretches it afterwards.
int64_t context_length(const ModelConfig& config);

// "layer_types", else the window on the layers for which `slides(layer)` holds.
Status read_sliding_layers(const ConfigReader& json, ModelConfig& config,
                           bool (*slides)(const ConfigReader&, int64_t layer));

}  // namespace pinion
