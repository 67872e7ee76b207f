#include "cli/node_diff.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "tensor/convert.h"

namespace pinion::cli {
namespace {

using Values = std::map<int32_t, std::vector<float>>;  // by value id

Values run_values(EngineExecutor& e, const Graph& g, std::span<const int32_t> ids) {
  Values values;
  e.observe([&](size_t node, std::span<const TensorView> outputs) {
    for (size_t i = 0; i < outputs.size(); ++i) {
      std::vector<float>& value = values[g.nodes()[node].out[i].id];
      value.resize(outputs[i].shape.elements());
      for (size_t k = 0; k < value.size(); ++k)
        value[k] = load_f32(outputs[i].data, outputs[i].dtype, static_cast<int64_t>(k));
    }
  });
  const auto n = static_cast<int32_t>(ids.size());
  std::vector<std::vector<int32_t>> tables;
  int32_t next = 0;
  for (size_t group = 0; group < e.kv_groups().size(); ++group) {
    tables.emplace_back((n + e.block_size() - 1) / e.block_size());
    std::iota(tables.back().begin(), tables.back().end(), next);
    next += static_cast<int32_t>(tables.back().size());
  }
  BatchSeq s{.tokens = ids, .past = 0, .rope_length = n, .blocks = {}, .outputs = n};
  for (const auto& t : tables) s.blocks.emplace_back(t);
  e.forward({{s}});
  e.observe({});
  return values;
}

Divergence compare(const std::vector<float>& want, const std::vector<float>& got, int64_t width) {
  Divergence d;
  double sum = 0, square = 0;
  size_t at = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = std::abs(static_cast<double>(want[i]) - got[i]);
    sum += difference * difference;
    square += static_cast<double>(want[i]) * want[i];
    if (difference <= d.worst) continue;
    if (std::isfinite(d.worst)) at = i;  // not a number is further away than any number; the first counts
    d.worst = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
  }
  d.rms = std::sqrt(sum / static_cast<double>(want.size()));
  d.scale = std::sqrt(square / static_cast<double>(want.size()));
  d.row = static_cast<int64_t>(at) / width;
  d.column = static_cast<int64_t>(at) % width;
  if (at < want.size()) d.got = got[at], d.want = want[at];
  return d;
}

}  // namespace

Result<NodeDiff> diff_nodes(const Engine& engine, EngineExecutor& executor, const Engine& reference,
                            EngineExecutor& reference_executor, std::span<const int32_t> ids, double tolerance) {
  const Graph& g = engine.graph();
  const Values want = run_values(reference_executor, reference.graph(), ids), got = run_values(executor, g, ids);
  // Weights and cache are equal, so what differs is the order of sums: 1e-4 of a value's size is far above that in f32,
  // far below a wrong kernel. A cache in 16 bits rounds a last bit differently now and then.
  if (tolerance <= 0) tolerance = engine.manifest().kv_dtype == DType::f32 ? 1e-4 : 2e-2;
  const Program* program = &engine.programs().back();
  for (const Program& p : engine.programs()) {
    if (std::ssize(ids) > p.tokens) continue;
    program = &p;
    break;
  }
  NodeDiff diff;
  std::string agreed = "the input";
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const Node& n = g.nodes()[i];
    for (Value v : n.out) {
      const auto w = want.find(v.id);
      if (w == want.end() || w->second.size() != got.at(v.id).size()) continue;  // born in a fusion
      ++diff.compared;
      const Divergence d = compare(w->second, got.at(v.id), g.spec(v).width);
      if (d.rms <= tolerance * (d.scale + 1e-6) && std::isfinite(d.worst)) {
        agreed = n.scope;
        continue;
      }
      return fail(Errc::internal,
                  fmt::format("{} diverges at {}: row {}, column {} is {}, the reference has {}; rms error {:.3g} of "
                              "{:.3g}; {} before it agrees",
                              to_text(n.op), n.scope, d.row, d.column, d.got, d.want, d.rms, d.scale, agreed),
                  program->steps[i].kernel, "run with --force_kernel to see whether another kernel agrees");
    }
  }
  diff.logits = compare(want.at(reference.graph().logits.id), got.at(g.logits.id), g.vocab_size);
  return diff;
}

}  // namespace pinion::cli
