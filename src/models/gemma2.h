// What Gemma 3 takes over from Gemma 2.
#pragma once

#include "graph/builder.h"
#include "models/config.h"

namespace pinion::gemma2 {

Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i);
// The caps are those of an absent key; 0: none.
Result<ModelConfig> common_config(const ConfigReader& json, const ModelOverrides& overrides, const FamilyDefaults& d,
                                  double attention_cap, double logit_cap);

}  // namespace pinion::gemma2
