// Builder: what a model family's file speaks. Weights are addressed by scope paths (w / "self_attn" / "q_proj").
#pragma once

#include <string>
#include <string_view>

#include "graph/graph.h"

namespace pinion {

class Scope {  // a path into the checkpoint's tensor names
 public:
  Scope() = default;
  explicit Scope(std::string path) : path_(std::move(path)) {}
  Scope operator/(std::string_view name) const {
    return Scope(path_.empty() ? std::string(name) : path_ + "." + std::string(name));
  }
  Scope operator/(int64_t index) const { return *this / std::to_string(index); }
  const std::string& path() const { return path_; }
  std::string tensor(std::string_view name) const { return (*this / name).path(); }

 private:
  std::string path_;
};

// The tensor that holds a linear's rows where a checkpoint fuses several linears (FusedRows).
struct FusedLinear {
  Scope scope;       // "model.layers.3.self_attn.qkv_proj"; its weight and bias alike
  int64_t rows = 0;  // 0: not fused
  int64_t first = 0, block = 0, stride = 0;
};

struct LinearOptions {
  bool bias = false;
  Shard shard = Shard::none;
  FusedLinear fused = {};
  bool transposed = false;  // the checkpoint holds [in, out]
};

class Builder {
 public:
  explicit Builder(Graph& graph) : g_(graph) {}
  Graph& graph() { return g_; }

  Value embed(const Scope& w, int64_t vocab, int64_t width, float scale = 1) {
    return one(Embed{vocab, width, scale}, {}, w, {matrix(w, "weight", vocab, width)});
  }
  // A learned vector for each of `count` positions, in a table whose first `offset` rows stand for none.
  Value position_embed(const Scope& w, int64_t count, int64_t width, int64_t offset = 0) {
    const Embed op{.vocab = count + offset, .width = width, .positions = true, .offset = offset};
    return one(op, {}, w, {matrix(w, "weight", count + offset, width)});
  }
  Value linear(Value x, const Scope& w, int64_t out, const LinearOptions& o = {}) {
    const int64_t in = g_.spec(x).width;
    std::vector<WeightUse> weights{matrix(w, "weight", out, in)};
    if (o.bias) weights.push_back(vector(w.tensor("bias"), "bias", out));
    weights[0].parts[0].transposed = o.transposed;
    if (o.fused.rows > 0) {
      for (WeightUse& use : weights) {
        use.parts[0].fused = {o.fused.scope.tensor(use.role), o.fused.rows, o.fused.first, o.fused.block,
                              o.fused.stride};
      }
    }
    return one(Linear{.in = in, .out = out, .bias = o.bias, .shard = o.shard}, {x}, w, std::move(weights));
  }
  // width 0: the whole row; otherwise one norm per group of `width` columns.
  Value rms_norm(Value x, const Scope& w, float eps, int64_t width = 0, float offset = 0) {
    if (width == 0) width = g_.spec(x).width;
    return one(RmsNorm{width, eps, offset}, {x}, w, {vector(w.tensor("weight"), "weight", width)});
  }
  Value layer_norm(Value x, const Scope& w, LayerNorm op) {
    const int64_t n = op.groups * op.width;
    std::vector<WeightUse> weights{vector(w.tensor("weight"), "weight", n)};
    if (op.bias) weights.push_back(vector(w.tensor("bias"), "bias", n));
    return one(op, {x}, w, std::move(weights));
  }
  Value rope(Value x, const Scope& w, Rope op) { return one(op, {x}, w); }
  Value attention(Value q, Value k, Value v, const Scope& w, Attention op) {
    std::vector<WeightUse> weights;
    if (op.sinks) weights.push_back(vector(w.tensor("sinks"), "sinks", op.heads));
    return one(op, {q, k, v}, w, std::move(weights));
  }
  Value act(Value x, const Scope& w, Activation act) { return one(Act{g_.spec(x).width, act}, {x}, w); }
  Value soft_cap(Value x, const Scope& w, float scale, float cap) {
    return one(SoftCap{g_.spec(x).width, scale, cap}, {x}, w);
  }
  Value gated_act(Value gate, Value up, const Scope& w, Activation act) {
    return one(GatedAct{g_.spec(gate).width, act}, {gate, up}, w);
  }
  Value add(Value a, Value b, const Scope& w, float scale = 1) {  // a + scale * b
    return one(Add{g_.spec(a).width, scale}, {a, b}, w);
  }
  Value select_rows(Value x, const Scope& w) { return one(SelectRows{g_.spec(x).width}, {x}, w); }
  // For the blocks whose weights no one scope names (experts, latent attention).
  std::vector<Value> node(Op op, std::vector<Value> in, const Scope& w, std::vector<WeightUse> weights = {}) {
    return g_.add(std::move(op), std::move(in), w.path(), std::move(weights));
  }

 private:
  Value one(Op op, std::vector<Value> in, const Scope& w, std::vector<WeightUse> weights = {}) {
    return g_.add(std::move(op), std::move(in), w.path(), std::move(weights)).at(0);
  }
  // A matrix of one row is a vector to everybody: its part's rows are its columns.
  static WeightUse matrix(const Scope& w, std::string_view role, int64_t rows, int64_t cols) {
    return {std::string(role), rows, cols, {{.name = w.tensor("weight"), .rows = rows == 1 ? cols : rows}}, false};
  }
  static WeightUse vector(std::string tensor, std::string_view role, int64_t n) {
    return {std::string(role), 1, n, {{.name = std::move(tensor), .rows = n}}, false};
  }
  Graph& g_;
};

}  // namespace pinion
