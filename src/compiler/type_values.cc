// Gives the graph's values the element type that a target computes in. Some things stay f32 whatever that is: the
// residual stream (what Embed and Add make: it sums every layer's branch, and rounding it once per layer would lose
// more than all other roundings together), the logits with what makes them out of the head, and what is no float. So do
// a router's logits and weights: rounding them would choose other experts.
#include "compiler/compiler.h"

namespace pinion {

void type_values(Graph& graph, DType narrow) {
  for (const Node& n : graph.nodes()) {
    if (std::holds_alternative<MoeRoute>(n.op)) {
      graph.set_dtype(n.in[0], DType::f32);
      continue;
    }
    for (size_t i = 0; i < n.out.size(); ++i) {
      const Value v = n.out[i];
      const ValueSpec& spec = graph.spec(v);
      if (!is_float(spec.dtype)) continue;
      const bool stream = std::holds_alternative<Embed>(n.op) || std::holds_alternative<Add>(n.op) ||
                          (std::holds_alternative<AddRmsNorm>(n.op) && i == 0);
      const bool logits = spec.rows == Rows::outputs && spec.width == graph.vocab_size;
      graph.set_dtype(v, stream || logits ? DType::f32 : narrow);
      // A choice of rows is of the type of what it chooses from.
      if (std::holds_alternative<SelectRows>(n.op)) graph.set_dtype(v, graph.spec(n.in[0]).dtype);
    }
  }
}

}  // namespace pinion
