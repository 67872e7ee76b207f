// The families of the Llama block, as the list in families.cc names them.
#pragma once

#include "models/families.h"

namespace pinion {

#define PINION_FAMILY(space, arch)                                                       \
  namespace space {                                                                      \
  Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides); \
  void build(Builder& b, const ModelConfig& c);                                          \
  inline constexpr ModelFamily kFamily{arch, config, build};                             \
  }

PINION_FAMILY(llama, "LlamaForCausalLM")
PINION_FAMILY(mistral, "MistralForCausalLM")
PINION_FAMILY(qwen2, "Qwen2ForCausalLM")
PINION_FAMILY(qwen3, "Qwen3ForCausalLM")

#undef PINION_FAMILY

}  // namespace pinion
