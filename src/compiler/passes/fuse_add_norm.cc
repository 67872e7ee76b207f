// x = a + b followed by RmsNorm(x) over the whole row becomes one AddRmsNorm with both results. Exact.
#include "compiler/passes/fusion.h"

namespace pinion {

void fuse_add_norm(Graph& g) {
  const Uses uses(g);
  std::vector<Node> nodes = g.nodes();
  std::vector<bool> removed(nodes.size(), false);
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!std::holds_alternative<Add>(nodes[i].op)) continue;
    const Value sum = nodes[i].out[0];
    for (int32_t user : uses.users(sum)) {
      const auto* norm = user >= 0 ? std::get_if<RmsNorm>(&nodes[user].op) : nullptr;
      if (!norm || norm->width != g.spec(sum).width || removed[user]) continue;
      nodes[i].op = AddRmsNorm{norm->width, norm->eps, norm->offset, std::get<Add>(nodes[i].op).scale};
      nodes[i].out = {sum, nodes[user].out[0]};
      nodes[i].weights = nodes[user].weights;
      nodes[i].scope = nodes[user].scope;
      removed[user] = true;
      break;
    }
  }
  std::vector<Node> kept;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!removed[i]) kept.push_back(std::move(nodes[i]));
  }
  g.replace_nodes(std::move(kept));
}

}  // namespace pinion
