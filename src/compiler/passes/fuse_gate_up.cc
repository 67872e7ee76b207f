// GatedAct(silu) over two linears of one input becomes one linear whose rows alternate gate and up: the epilogue finds
// both of a pair in one tile. Exact: every row's dot product stays what it was.
#include "compiler/passes/fusion.h"

namespace pinion {

void fuse_gate_up(Graph& g) {
  const Uses uses(g);
  std::vector<Node> nodes = g.nodes();
  std::vector<bool> removed(nodes.size(), false);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto* act = std::get_if<GatedAct>(&nodes[i].op);
    if (!act || act->act != Activation::silu) continue;
    const Node* gate = sole_definer<Linear>(g, uses, nodes[i].in[0]);
    const Node* up = sole_definer<Linear>(g, uses, nodes[i].in[1]);
    if (!gate || !up || gate == up || gate->in != up->in) continue;
    const auto& a = std::get<Linear>(gate->op);
    const auto& b = std::get<Linear>(up->op);
    if (a != b || a.epilogue != Epilogue::none) continue;
    Node fused{Linear{.in = a.in, .out = 2 * a.out, .bias = a.bias, .epilogue = Epilogue::gated_silu, .shard = a.shard},
               gate->in,
               nodes[i].out,
               nodes[i].scope + ".gate_up_proj",
               {}};
    for (size_t w = 0; w < gate->weights.size(); ++w) {
      WeightUse use = gate->weights[w];
      use.parts.push_back(up->weights[w].parts.at(0));
      (use.rows == 1 ? use.cols : use.rows) *= 2;
      use.interleave = true;
      fused.weights.push_back(std::move(use));
    }
    removed[gate - g.nodes().data()] = removed[up - g.nodes().data()] = true;
    nodes[i] = std::move(fused);
  }
  std::vector<Node> kept;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!removed[i]) kept.push_back(std::move(nodes[i]));
  }
  g.replace_nodes(std::move(kept));
}

}  // namespace pinion
