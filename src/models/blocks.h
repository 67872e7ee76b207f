// The parts that decoder families share, in the vocabulary of their papers. A family's file composes these.
#pragma once

#include "graph/builder.h"
#include "models/config.h"

namespace pinion {

struct AttentionOptions {
  bool qk_norm = false;  // RMS norm on each query and key head, before rope
  bool qkv_bias = false, out_bias = false;
};

// Projections, rope, causal attention over the cache, output projection. `layer` is the decoder layer's number.
Value attention_block(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t layer,
                      AttentionOptions o = {});
// down(act(gate(x)) * up(x))
Value gated_mlp(Builder& b, const ModelConfig& c, const Scope& w, Value x);

using Layer = Value (*)(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t index);
// Embedding, the layers, the final norm, the rows whose logits are wanted, the (tied) head: a whole decoder.
void decoder(Builder& b, const ModelConfig& c, Layer layer);

}  // namespace pinion
