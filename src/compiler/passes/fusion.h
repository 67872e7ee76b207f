// The passes, and what they share: who defines a value, who uses it.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace pinion {

void fuse_qkv(Graph& graph);       // q, k, v projections merged; head norms, rope and the cache write in one step
void fuse_gate_up(Graph& graph);   // gate and up projections interleaved, SwiGLU in the epilogue
void fuse_add_norm(Graph& graph);  // residual addition and the norm that follows

class Uses {  // an index over a graph's nodes; stale after a change
 public:
  explicit Uses(const Graph& g) : definer_(g.value_count(), -1), users_(g.value_count()) {
    for (int32_t i = 0; i < std::ssize(g.nodes()); ++i) {
      for (Value v : g.nodes()[i].out) definer_[v.id] = i;
      for (Value v : g.nodes()[i].in) users_[v.id].push_back(i);
    }
    users_[g.logits.id].push_back(-1);  // the result has a user outside
  }
  int32_t definer(Value v) const { return definer_[v.id]; }
  const std::vector<int32_t>& users(Value v) const { return users_[v.id]; }
  bool single_use(Value v) const { return users_[v.id].size() == 1; }

 private:
  std::vector<int32_t> definer_;
  std::vector<std::vector<int32_t>> users_;
};

// The node that defines v when it is a T whose result has no other use; else null.
template <class T>
const Node* sole_definer(const Graph& g, const Uses& uses, Value v) {
  const int32_t i = uses.definer(v);
  return i >= 0 && uses.single_use(v) && std::holds_alternative<T>(g.nodes()[i].op) ? &g.nodes()[i] : nullptr;
}

}  // namespace pinion
