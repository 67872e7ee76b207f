#include "calibrate/input_statistics.h"

#include <algorithm>
#include <cmath>

#include "tensor/convert.h"

namespace pinion {

InputCollector::InputCollector(const Graph& graph, int64_t sample_rows) : graph_(graph), sample_rows_(sample_rows) {
  for (const Node& n : graph.nodes()) {
    if (!std::holds_alternative<Linear>(n.op)) continue;
    for (const WeightPart& part : n.weights[0].parts) inputs_[part.name] = n.in[0].id;
    values_[n.in[0].id].cols = std::get<Linear>(n.op).in;
  }
}

void InputCollector::see(size_t node, std::span<const TensorView> outputs) {
  const Node& n = graph_.nodes()[node];
  for (size_t i = 0; i < n.out.size(); ++i) {
    const auto it = values_.find(n.out[i].id);
    if (it == values_.end()) continue;
    InputStatistics& s = it->second;
    const TensorView& t = outputs[i];
    for (int64_t row = 0; row < t.shape[0]; ++row, ++s.seen) {
      // Reservoir sampling (Vitter's algorithm R): row number `seen` replaces a random one with its due chance.
      int64_t place = s.seen;
      if (place >= sample_rows_) place = std::uniform_int_distribution<int64_t>(0, s.seen)(random_);
      const bool keep = place < sample_rows_;
      if (keep && std::ssize(s.sample) < (place + 1) * s.cols) s.sample.resize((place + 1) * s.cols);
      for (int64_t k = 0; k < s.cols; ++k) {
        const float v = load_f32(t.data, t.dtype, row * s.cols + k);
        s.absmax = std::max(s.absmax, std::fabs(v));
        if (keep) s.sample[place * s.cols + k] = v;
      }
    }
  }
}

const InputStatistics* InputCollector::find(const std::string& weight) const {
  const auto it = inputs_.find(weight);
  if (it == inputs_.end()) return nullptr;
  const auto value = values_.find(it->second);
  return value == values_.end() || value->second.seen == 0 ? nullptr : &value->second;
}

}  // namespace pinion
