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

struct LinearOptions {
  bool bias = false;
  Shard shard = Shard::none;
};

class Builder {
 public:
  explicit Builder(Graph& graph) : g_(graph) {}
  Graph& graph() { return g_; }

  Value embed(const Scope& w, int64_t vocab, int64_t width, float scale = 1) {
    return one(Embed{vocab, width, scale}, {}, w, {matrix(w, "weight", vocab, width)});
  }
  Value linear(Value x, const Scope& w, int64_t out, LinearOptions o = {}) {
    const int64_t in = g_.spec(x).width;
    std::vector<WeightUse> weights{matrix(w, "weight", out, in)};
    if (o.bias) weights.push_back(vector(w.tensor("bias"), "bias", out));
    return one(Linear{.in = in, .out = out, .bias = o.bias, .shard = o.shard}, {x}, w, std::move(weights));
  }
  // width 0: the whole row; otherwise one norm per group of `width` columns.
  Value rms_norm(Value x, const Scope& w, float eps, int64_t width = 0) {
    if (width == 0) width = g_.spec(x).width;
    return one(RmsNorm{width, eps, 0}, {x}, w, {vector(w.tensor("weight"), "weight", width)});
  }
  Value rope(Value x, const Scope& w, Rope op) { return one(op, {x}, w); }
  Value attention(Value q, Value k, Value v, const Scope& w, Attention op) { return one(op, {q, k, v}, w); }
  Value gated_act(Value gate, Value up, const Scope& w, Activation act) {
    return one(GatedAct{g_.spec(gate).width, act}, {gate, up}, w);
  }
  Value add(Value a, Value b, const Scope& w) { return one(Add{g_.spec(a).width}, {a, b}, w); }
  Value select_rows(Value x, const Scope& w) { return one(SelectRows{g_.spec(x).width}, {x}, w); }

 private:
  Value one(Op op, std::vector<Value> in, const Scope& w, std::vector<WeightUse> weights = {}) {
    return g_.add(std::move(op), std::move(in), w.path(), std::move(weights)).at(0);
  }
  static WeightUse matrix(const Scope& w, std::string_view role, int64_t rows, int64_t cols) {
    return {std::string(role), rows, cols, {{w.tensor("weight"), rows}}, false};
  }
  static WeightUse vector(std::string tensor, std::string_view role, int64_t n) {
    return {std::string(role), 1, n, {{std::move(tensor), n}}, false};
  }
  Graph& g_;
};

}  // namespace pinion
