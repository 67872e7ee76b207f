#include "calibrate/fold_scales.h"

#include <algorithm>
#include <cmath>

#include "compiler/weight_source.h"
#include "quant/formats/int4/awq.h"
#include "quant/formats/int4/int4.h"
#include "quant/formats/int8/smoothquant.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

// The linears' columns times `scale`, and what is known about their inputs divided by it.
void scale_columns(const std::vector<const LinearTensor*>& group, std::span<const float> scale, ScaledWeights& scaled) {
  for (const LinearTensor* l : group) {
    std::vector<float>& w = scaled.weights[l->tensor];
    for (size_t i = 0; i < w.size(); ++i) w[i] *= scale[i % l->cols];
    InputStatistics& x = scaled.inputs[l->tensor];
    for (size_t i = 0; i < x.sample.size(); ++i) x.sample[i] /= scale[i % l->cols];
    for (int64_t k = 0; k < l->cols; ++k) x.column_absmax[k] /= scale[k];
    x.absmax = *std::ranges::max_element(x.column_absmax);
  }
}

Result<std::vector<float>> read_vector(const Checkpoint& checkpoint, const std::string& name, int64_t n) {
  PINION_TRY(const TensorRef t, checkpoint.tensor(name));
  if (!is_float(t.dtype) || t.shape.elements() != n) {
    return fail(Errc::corrupt, "the tensor \"" + name + "\" is not the norm's weight", checkpoint.dir().string());
  }
  std::vector<float> out(n);
  convert_floats(t.data.data(), t.dtype, reinterpret_cast<std::byte*>(out.data()), DType::f32, n);
  return out;
}

}  // namespace

Status fold_scales(const Checkpoint& checkpoint, const Graph& graph, const std::vector<LinearTensor>& linears,
                   InputScaling scaling, const EncodeOptions& options, ScaledWeights& scaled) {
  std::map<int32_t, size_t> producer;
  std::map<int32_t, int64_t> readers;  // nodes that read a value
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    for (const Value& v : graph.nodes()[i].out) producer[v.id] = i;
    for (const Value& v : graph.nodes()[i].in) ++readers[v.id];
  }
  std::map<size_t, const LinearTensor*> by_node;
  std::map<int32_t, std::vector<const LinearTensor*>> groups;  // in the graph's order: values are numbered as they come
  for (const LinearTensor& l : linears) {
    if (!l.fused) by_node[l.node] = &l;
    groups[graph.nodes()[l.node].in[0].id].push_back(&l);
  }
  for (const auto& [value, group] : groups) {
    if (readers[value] != std::ssize(group) || !producer.contains(value)) continue;
    const Node& made = graph.nodes()[producer[value]];
    const int64_t cols = group[0]->cols;
    const auto* norm = std::get_if<RmsNorm>(&made.op);
    const LinearTensor* up = nullptr;
    if (std::holds_alternative<GatedAct>(made.op)) {
      const int32_t branch = made.in[1].id;
      const auto it = producer.contains(branch) ? by_node.find(producer[branch]) : by_node.end();
      if (it != by_node.end() && readers[branch] == 1 && !std::get<Linear>(graph.nodes()[it->second->node].op).bias) {
        up = it->second;
      }
    }
    if ((norm == nullptr || norm->width != cols) && up == nullptr) continue;

    std::vector<FloatMatrix> weights;
    for (const LinearTensor* l : group) weights.push_back({scaled.weights[l->tensor], l->rows, l->cols});
    const FloatMatrix inputs = scaled.inputs[group[0]->tensor].inputs();
    std::vector<float> scale;
    if (scaling == InputScaling::awq) {
      PINION_TRY(const int32_t size, check_int4_group(cols, options.group));
      scale = awq_search_scales(weights, inputs, size, options.zero_points).scale;
    } else {
      scale = smooth_scales(scaled.inputs[group[0]->tensor].column_absmax, weights, options.smooth_alpha);
    }
    if (norm != nullptr) {
      const std::string name = checkpoint_name(checkpoint, made.weights[0].parts[0].name);
      PINION_TRY(std::vector<float> w, read_vector(checkpoint, name, cols));
      for (int64_t k = 0; k < cols; ++k) w[k] = (norm->offset + w[k]) / scale[k] - norm->offset;
      scaled.vectors[name] = std::move(w);
    } else {
      std::vector<float>& w = scaled.weights[up->tensor];
      for (size_t i = 0; i < w.size(); ++i) w[i] /= scale[i / up->cols];
    }
    scale_columns(group, scale, scaled);
  }
  return {};
}

}  // namespace pinion
