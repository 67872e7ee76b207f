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

Result<std::vector<float>> read_floats(const Checkpoint& checkpoint, const std::string& name, int64_t n) {
  PINION_TRY(const TensorRef t, checkpoint.tensor(name));
  if (!is_float(t.dtype) || t.shape.elements() != n) {
    return fail(Errc::corrupt, "the tensor \"" + name + "\" has another shape than its layer",
                checkpoint.dir().string());
  }
  std::vector<float> out(n);
  convert_floats(t.data.data(), t.dtype, reinterpret_cast<std::byte*>(out.data()), DType::f32, n);
  return out;
}

class Folding {
 public:
  Folding(const Checkpoint& checkpoint, const Graph& graph, const std::vector<LinearTensor>& linears,
          InputScaling scaling, const EncodeOptions& options, ScaledWeights& scaled)
      : checkpoint_(checkpoint), graph_(graph), scaling_(scaling), options_(options), scaled_(scaled) {
    for (size_t i = 0; i < graph.nodes().size(); ++i) {
      for (const Value& v : graph.nodes()[i].out) producer_[v.id] = i;
      for (const Value& v : graph.nodes()[i].in) readers_[v.id].push_back(i);
    }
    for (const LinearTensor& l : linears) {
      rows_[l.node] += l.rows;
      if (!l.fused) by_piece_[{l.node, l.piece}] = &l;
      groups_[graph.nodes()[l.node].in[0].id].push_back(&l);
    }
  }

  Status run() {
    for (const auto& [value, group] : groups_) {  // in the graph's order: values are numbered as they come
      if (!producer_.contains(value)) continue;
      const Node& made = graph_.nodes()[producer_[value]];
      if (const auto* norm = std::get_if<RmsNorm>(&made.op); norm != nullptr && norm->width == group[0]->cols) {
        PINION_OK(into_norm(value, group, made, *norm));
      } else if (std::holds_alternative<GatedAct>(made.op)) {
        PINION_OK(into_up(value, group, made));
      } else if (std::holds_alternative<MoeLinear>(made.op)) {
        PINION_OK(into_experts(value, producer_[value]));
      }
    }
    return {};
  }

 private:
  using Group = std::vector<const LinearTensor*>;

  const Node& node(size_t i) const { return graph_.nodes()[i]; }

  Result<std::vector<float>> search(const Group& group, const InputStatistics& inputs) {
    std::vector<FloatMatrix> weights;
    for (const LinearTensor* l : group) weights.push_back({scaled_.weights[l->tensor], l->rows, l->cols});
    if (scaling_ == InputScaling::smooth) return smooth_scales(inputs.column_absmax, weights, options_.smooth_alpha);
    PINION_TRY(const int32_t size, check_int4_group(group[0]->cols, options_.group));
    return awq_search_scales(weights, inputs.inputs(), size, options_.zero_points).scale;
  }

  // Whether `linears` hold the whole weight of the node.
  bool covered(size_t i) const {
    const auto rows = rows_.find(i);
    return rows != rows_.end() && rows->second == node(i).weights[0].rows;
  }

  Status into_norm(int32_t value, const Group& group, const Node& made, const RmsNorm& norm) {
    const int64_t cols = norm.width;
    std::vector<size_t> floats;  // the router and a shared expert's gate: small linears that stay in floats
    const InputStatistics* seen = &scaled_.inputs[group[0]->tensor];
    bool experts = false;
    for (const size_t i : readers_[value]) {
      if (std::holds_alternative<MoeLinear>(node(i).op) && covered(i)) experts = true, seen = &scaled_.experts[i];
    }
    for (const size_t i : readers_[value]) {
      if (covered(i)) continue;
      if (!experts || rows_.contains(i) || !std::holds_alternative<Linear>(node(i).op) ||
          node(i).weights[0].parts.size() != 1 || node(i).weights[0].parts[0].transposed) {
        return {};
      }
      floats.push_back(i);
    }
    std::map<std::string, std::vector<float>> changed;
    for (const size_t i : floats) {
      const WeightUse& use = node(i).weights[0];
      std::string name = checkpoint_name(checkpoint_, use.parts[0].name);
      if (name.empty() && use.parts[0].fused.rows == use.rows) {
        name = checkpoint_name(checkpoint_, use.parts[0].fused.name);
      }
      if (name.empty()) return {};  // it lies among others
      PINION_TRY(changed[name], read_floats(checkpoint_, name, std::get<Linear>(node(i).op).out * cols));
    }
    PINION_TRY(const std::vector<float> scale, search(group, *seen));
    for (auto& [name, w] : changed) {
      for (size_t i = 0; i < w.size(); ++i) w[i] *= scale[i % cols];
    }
    const std::string name = checkpoint_name(checkpoint_, made.weights[0].parts[0].name);
    PINION_TRY(std::vector<float> w, read_floats(checkpoint_, name, cols));
    for (int64_t k = 0; k < cols; ++k) w[k] = (norm.offset + w[k]) / scale[k] - norm.offset;
    changed[name] = std::move(w);
    scaled_.changed.merge(changed);
    scale_columns(group, scale, scaled_);
    return {};
  }

  Status into_up(int32_t value, const Group& group, const Node& made) {
    for (const size_t i : readers_[value]) {
      if (!covered(i)) return {};
    }
    const int32_t branch = made.in[1].id;
    if (!producer_.contains(branch) || readers_[branch].size() != 1) return {};
    const auto up = by_piece_.find({producer_[branch], 0});
    if (up == by_piece_.end()) return {};
    const auto* linear = std::get_if<Linear>(&node(up->second->node).op);
    if (linear == nullptr || linear->bias) return {};
    return fold(group, *up->second, scaled_.inputs[group[0]->tensor]);
  }

  // Each expert's down projection, into its up projection: the second half of the parts that made its input.
  Status into_experts(int32_t value, size_t made) {
    const auto& op = std::get<MoeLinear>(node(made).op);
    if (op.epilogue != ExpertEpilogue::gated || op.bias || readers_[value].size() != 1) return {};
    const size_t down = readers_[value][0], experts = op.experts;
    if (node(made).weights[0].parts.size() != 2 * experts || node(down).weights[0].parts.size() != experts) return {};
    for (size_t e = 0; e < experts; ++e) {
      const auto up = by_piece_.find({made, experts + e}), own = by_piece_.find({down, e});
      if (up == by_piece_.end() || own == by_piece_.end()) continue;
      PINION_OK(fold({own->second}, *up->second, scaled_.inputs[own->second->tensor]));
    }
    return {};
  }

  Status fold(const Group& group, const LinearTensor& up, const InputStatistics& inputs) {
    PINION_TRY(const std::vector<float> scale, search(group, inputs));
    std::vector<float>& w = scaled_.weights[up.tensor];
    for (size_t i = 0; i < w.size(); ++i) w[i] /= scale[i / up.cols];
    scale_columns(group, scale, scaled_);
    return {};
  }

  const Checkpoint& checkpoint_;
  const Graph& graph_;
  InputScaling scaling_;
  const EncodeOptions& options_;
  ScaledWeights& scaled_;
  std::map<int32_t, size_t> producer_;
  std::map<int32_t, std::vector<size_t>> readers_;  // nodes that read a value
  std::map<size_t, int64_t> rows_;                  // of the node's weight, among the linears
  std::map<std::pair<size_t, size_t>, const LinearTensor*> by_piece_;
  std::map<int32_t, Group> groups_;  // by the value that they read
};

}  // namespace

Status fold_scales(const Checkpoint& checkpoint, const Graph& graph, const std::vector<LinearTensor>& linears,
                   InputScaling scaling, const EncodeOptions& options, ScaledWeights& scaled) {
  return Folding(checkpoint, graph, linears, scaling, options, scaled).run();
}

}  // namespace pinion
