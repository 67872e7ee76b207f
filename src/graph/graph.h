// Graph: the model as a list of nodes in execution order over values [rows, width]; weights are named, never held.
// Every value has a scope name, so that errors, diffs and traces read "model.layers.3.self_attn".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "graph/ops/ops.h"
#include "graph/rope_spec.h"

namespace pinion {

struct Value {
  int32_t id = -1;
  bool operator==(const Value&) const = default;
};

// Where a weight's rows lie in a tensor that holds several weights: blocks of `block` rows, the first at row `first`,
// one every `stride` rows. Phi-3's qkv_proj has one block for each of q, k and v; GPT-NeoX's query_key_value has a
// block of q, of k and of v per head.
struct FusedRows {
  std::string name;  // of the tensor; empty: the checkpoint never fuses this weight
  int64_t rows = 0;  // of the whole tensor
  int64_t first = 0, block = 0, stride = 0;
  int64_t row(int64_t i) const { return first + i / block * stride + i % block; }
  bool operator==(const FusedRows&) const = default;
};

// One tensor of the checkpoint that a packed weight is made of.
struct WeightPart {
  std::string name;  // "model.layers.3.self_attn.q_proj.weight"
  int64_t rows = 0;
  FusedRows fused;               // read where the checkpoint has no tensor `name`
  bool transposed = false;       // the tensor holds [in, out], as GPT-2's Conv1D; its columns are the weight's rows
  int64_t stack = 0, index = 0;  // stack > 0: the tensor stacks that many matrices, and this is one of them (experts)
  bool operator==(const WeightPart&) const = default;
};

// A weight as a node uses it: parts stacked by rows. Interleaved: the first half of the parts stacked, and row by row
// with it the second half, of equal height.
struct WeightUse {
  std::string role;  // "weight", "bias", "q_norm", "k_norm", "sinks": the op's documented order
  int64_t rows = 1, cols = 0;
  std::vector<WeightPart> parts;
  bool interleave = false;
  bool operator==(const WeightUse&) const = default;
};

struct Node {
  Op op;
  std::vector<Value> in, out;
  std::string scope;
  std::vector<WeightUse> weights;
};

struct KvLayer {  // what one attention layer caches
  int64_t kv_heads = 0, head_dim = 0;
  int32_t window = 0;   // 0: everything
  bool latent = false;  // one row of head_dim numbers per token and head instead of a key and a value (MlaKvWrite)
  float k_scale = 1, v_scale = 1;  // of an fp8 cache: stored = e4m3(x / scale)
  int64_t token_width() const { return (latent ? 1 : 2) * kv_heads * head_dim; }  // numbers per token
  // Bytes per token in a cache of this type; int8 has an f32 scale beside each head's key and value.
  int64_t token_bytes(DType type) const {
    const int64_t scales = type == DType::i8 ? (latent ? 1 : 2) * kv_heads * int64_t{sizeof(float)} : 0;
    return token_width() * bit_size(type) / 8 + scales;
  }
  bool operator==(const KvLayer&) const = default;
};

class Graph {
 public:
  // Appends a node; checks its inputs and shapes (a wrong one is a bug of the caller). Returns its outputs.
  std::vector<Value> add(Op op, std::vector<Value> in, std::string scope, std::vector<WeightUse> weights = {});
  const std::vector<Node>& nodes() const { return nodes_; }
  const ValueSpec& spec(Value v) const { return values_[v.id]; }
  int32_t value_count() const { return static_cast<int32_t>(values_.size()); }

  std::vector<KvLayer> kv_layers;  // by Attention::layer
  std::vector<RopeSpec> ropes;     // by Rope::table
  Value logits;                    // the result, [outputs, vocab]
  int64_t vocab_size = 0, context_length = 0;

  // What passes need: the nodes are replaced as a whole, values keep their ids.
  void replace_nodes(std::vector<Node> nodes) { nodes_ = std::move(nodes); }
  Value new_value(ValueSpec spec);
  // Values are f32 when they are made; the compiler narrows them for devices that compute in other types. What an op's
  // rule makes an integer stays one.
  void set_dtype(Value v, DType type) { values_[v.id].dtype = type; }

 private:
  std::vector<Node> nodes_;
  std::vector<ValueSpec> values_;
};

// Every value is defined once and before its uses, shapes follow the ops' rules, weights match their ops, layers and
// rope tables exist. Run after every pass and after reading an engine.
Status verify(const Graph& graph);

std::string to_text(const Graph& graph);  // one node per line
std::string to_text(const Op& op);        // "linear(in=64, out=128, …)"
Json to_json(const Graph& graph);
Result<Graph> graph_from_json(const Json& json, std::string_view where);  // verified

}  // namespace pinion
