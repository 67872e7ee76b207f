// The parts that decoder families share, in the vocabulary of their papers. A family's file composes these.
#pragma once

#include <string_view>

#include "graph/builder.h"
#include "models/config.h"

namespace pinion {

// Norms on queries and keys before rope, named q_norm and k_norm (or AttentionOptions' names):
enum class QkNorm : uint8_t {
  none,
  head,         // RMS norm of each head, one weight [head_dim] (Qwen3; Gemma 3 with the model's offset)
  full,         // RMS norm over all heads together (OLMo 2)
  layer,        // layer norm of each head, one weight and bias [head_dim] (Phi)
  layer_heads,  // layer norm of each head with a weight of its own, [heads, head_dim] (Cohere)
  layer_list    // the same, in a tensor per head: norms.0, norms.1 … (StableLM)
};

struct AttentionOptions {
  QkNorm qk_norm = QkNorm::none;
  bool qkv_bias = false, out_bias = false;
  bool sinks = false;  // weights [heads] named sinks (gpt-oss)
  std::string_view out = "o_proj";
  // Checkpoints may hold q_proj, k_proj and v_proj in one tensor of this name: all queries, all keys, all values; or
  // `grouped`: for each KV head its query heads, its key, its value.
  std::string_view qkv = "qkv_proj";
  bool grouped = false;
  bool transposed = false;  // weights are [in, out] (GPT-2)
  std::string_view q_norm = "q_norm", k_norm = "k_norm";
};

// Projections, rope where the layer rotates, causal attention over the cache, output projection. `layer` is the decoder
// layer's number.
Value attention_block(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t layer,
                      const AttentionOptions& o = {});
// The options of a layer's attention op, for blocks that make their own queries, keys and values.
Attention attention_op(Builder& b, const ModelConfig& c, int64_t layer);

// down(act(gate(x)) * up(x)); checkpoints may hold gate_proj and up_proj in one tensor gate_up_proj.
Value gated_mlp(Builder& b, const ModelConfig& c, const Scope& w, Value x);

struct MlpOptions {
  std::string_view up = "up_proj", down = "down_proj";
  bool transposed = false;
};
// down(act(up(x)))
Value mlp(Builder& b, const ModelConfig& c, const Scope& w, Value x, const MlpOptions& o = {});

// The model's kind of norm over the whole row.
Value norm(Builder& b, const ModelConfig& c, const Scope& w, Value x);
// x + residual_scale * branch
Value residual(Builder& b, const ModelConfig& c, const Scope& w, Value x, Value branch);

using Layer = Value (*)(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t index);

struct DecoderNames {
  Scope embed{"model.embed_tokens"}, layers{"model.layers"}, norm{"model.norm"}, head{"lm_head"};
  Scope positions{}, embed_norm{};    // empty: the family has none
  int64_t position_offset = 0;        // rows of the position table before position 0
  Scope project_in{}, project_out{};  // between embeddings and layers, where their widths differ (OPT)
};

// A whole decoder: begin_decoder, the layers, end_decoder.
void decoder(Builder& b, const ModelConfig& c, Layer layer, const DecoderNames& names = {});
// What the graph says of the whole model (cache, ropes, sizes), and the embedding with positions and norm.
Value begin_decoder(Builder& b, const ModelConfig& c, const DecoderNames& names = {});
// The final norm (unless its name is empty), the rows whose logits are wanted, the (tied) head, its scale and cap.
void end_decoder(Builder& b, const ModelConfig& c, Value x, const DecoderNames& names = {});

}  // namespace pinion
