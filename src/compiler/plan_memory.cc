// Values whose lives do not overlap share an arena slot. Best fit over the free slots of the same kind of rows, in
// execution order; a node's outputs never share with its inputs, because kernels may not run in place.
#include <algorithm>
#include <limits>

#include "compiler/compiler.h"

namespace pinion {

ArenaPlan plan_memory(const Graph& g) {
  ArenaPlan plan;
  plan.slot_of.assign(g.value_count(), -1);
  std::vector<int32_t> last_use(g.value_count(), -1);
  for (int32_t i = 0; i < std::ssize(g.nodes()); ++i) {
    for (Value v : g.nodes()[i].out) last_use[v.id] = std::max(last_use[v.id], i);
    for (Value v : g.nodes()[i].in) last_use[v.id] = i;
  }
  last_use[g.logits.id] = std::numeric_limits<int32_t>::max();
  std::vector<int32_t> free;
  for (int32_t i = 0; i < std::ssize(g.nodes()); ++i) {
    const Node& n = g.nodes()[i];
    for (Value v : n.out) {
      const ValueSpec& spec = g.spec(v);
      const bool tokens = spec.rows == Rows::tokens;
      const int64_t need = spec.width * static_cast<int64_t>(byte_size(spec.dtype));
      auto size = [&](int32_t s) { return tokens ? plan.slots[s].per_token : plan.slots[s].per_output; };
      auto best = free.end();
      for (auto s = free.begin(); s != free.end(); ++s) {
        if (size(*s) == 0) continue;  // of the other kind
        // The smallest that holds it; else the largest, which then grows.
        const bool better = best == free.end() || (size(*s) >= need ? size(*best) < need || size(*s) < size(*best)
                                                                    : size(*best) < need && size(*s) > size(*best));
        if (better) best = s;
      }
      int32_t slot;
      if (best != free.end()) {
        slot = *best;
        free.erase(best);
      } else {
        slot = static_cast<int32_t>(plan.slots.size());
        plan.slots.push_back({});
      }
      auto& bytes = tokens ? plan.slots[slot].per_token : plan.slots[slot].per_output;
      bytes = std::max(bytes, need);
      plan.slot_of[v.id] = slot;
    }
    for (const auto* list : {&n.in, &n.out}) {
      for (Value v : *list) {
        const int32_t slot = plan.slot_of[v.id];
        if (last_use[v.id] == i && std::ranges::find(free, slot) == free.end()) free.push_back(slot);
      }
    }
  }
  return plan;
}

}  // namespace pinion
