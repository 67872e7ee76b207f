// Which weights an engine holds: each distinct one once, however many nodes use it.
#include "compiler/compiler.h"

namespace pinion {

void list_weights(const Graph& graph, DType dtype, std::vector<PackedWeight>& weights,
                  std::vector<std::vector<int32_t>>& node_weights, std::vector<const WeightUse*>& uses) {
  for (const Node& n : graph.nodes()) {
    std::vector<int32_t> ids;
    for (const WeightUse& use : n.weights) {
      // Vectors (norms, biases) stay in f32: they are small, and kernels read them without a conversion.
      const DType type = use.rows == 1 ? DType::f32 : dtype;
      int32_t id = 0;
      while (id < std::ssize(uses) && !(uses[id]->parts == use.parts && uses[id]->interleave == use.interleave &&
                                        uses[id]->rows == use.rows && uses[id]->cols == use.cols)) {
        ++id;
      }
      if (id == std::ssize(uses)) {
        uses.push_back(&use);
        weights.push_back({use.parts[0].name, {type, Layout::row_major, use.rows, use.cols}});
      }
      ids.push_back(id);
    }
    node_weights.push_back(std::move(ids));
  }
}

}  // namespace pinion
