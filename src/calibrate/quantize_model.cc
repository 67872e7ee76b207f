#include "calibrate/quantize_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <numeric>
#include <set>

#include "base/locate_error.h"
#include "base/thread_pool.h"
#include "calibrate/fold_scales.h"
#include "compiler/weight_source.h"
#include "quant/formats/int4/awq.h"
#include "quant/formats/int4/int4.h"
#include "quant/formats/int8/int8.h"
#include "quant/sources/modules.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

std::string module_of(const std::string& tensor) {
  return tensor.ends_with(".weight") ? tensor.substr(0, tensor.size() - 7) : tensor;
}

bool is_excluded(const std::string& module, const QuantizeModelOptions& options) {
  return std::ranges::any_of(options.exclude_modules,
                             [&](const std::string& pattern) { return wildcard_match(pattern, module); });
}

// The values that a router reads its scores from.
std::set<int32_t> router_scores(const Graph& graph) {
  std::set<int32_t> out;
  for (const Node& n : graph.nodes()) {
    if (std::holds_alternative<MoeRoute>(n.op)) out.insert(n.in[0].id);
  }
  return out;
}

// The linears to quantise, by the tensors that hold them; `ignored` gets the modules of the others.
Result<std::vector<LinearTensor>> list_linears(const Checkpoint& checkpoint, const Graph& graph,
                                               const QuantizeModelOptions& options, std::vector<std::string>& ignored) {
  std::vector<LinearTensor> out;
  std::set<std::string> listed;
  const std::set<int32_t> scores = router_scores(graph);
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& n = graph.nodes()[i];
    const bool experts = std::holds_alternative<MoeLinear>(n.op), lookup = std::holds_alternative<Embed>(n.op);
    if (lookup && (!options.embedding || std::get<Embed>(n.op).positions)) continue;
    if (!experts && !lookup && !std::holds_alternative<Linear>(n.op)) continue;
    for (size_t piece = 0; piece < n.weights[0].parts.size(); ++piece) {
      const WeightPart& part = n.weights[0].parts[piece];
      std::string tensor = checkpoint_name(checkpoint, part.name);
      const bool fused = tensor.empty() && !part.fused.name.empty();
      if (fused) tensor = checkpoint_name(checkpoint, part.fused.name);
      if (tensor.empty())
        return fail(Errc::not_found, "the tensor \"" + part.name + "\" is missing", checkpoint.dir().string());
      if (!listed.insert(tensor).second) continue;
      const std::string module = module_of(tensor);
      // The head decides every token and routers are tiny: formats of others leave them in floats too.
      const bool head = graph.spec(n.out[0]).rows == Rows::outputs;
      const bool gate = !lookup && n.weights[0].rows == 1;  // a shared expert's: a vector
      if ((head && !options.head) || gate || scores.contains(n.out[0].id) || is_excluded(module, options)) {
        ignored.push_back(module);
        continue;
      }
      if (part.transposed || part.stack > 0) {
        return fail(Errc::unsupported,
                    part.stack > 0 ? "experts that one tensor stacks cannot be quantised yet"
                                   : "weights that are stored transposed cannot be quantised yet",
                    module, "leave it out with --exclude_modules \"" + module + "\"");
      }
      out.push_back({.module = module,
                     .tensor = tensor,
                     .part = experts && fused ? part.fused.name : part.name,
                     .rows = fused ? part.fused.rows : part.rows,
                     .cols = n.weights[0].cols,
                     .node = i,
                     .piece = piece,
                     .fused = fused,
                     .plain = head || lookup});
    }
  }
  return out;
}

Result<std::vector<float>> read_floats(const Checkpoint& checkpoint, const std::string& name, int64_t elements) {
  PINION_TRY(const TensorRef t, checkpoint.tensor(name));
  if (!is_float(t.dtype) || t.shape.elements() != elements) {
    return fail(Errc::corrupt,
                fmt::format("the tensor \"{}\" is {} {}, the configuration makes it {} floats", name,
                            pinion::name(t.dtype), t.shape.str(), elements),
                checkpoint.dir().string());
  }
  std::vector<float> out(elements);
  convert_floats(t.data.data(), t.dtype, reinterpret_cast<std::byte*>(out.data()), DType::f32, elements);
  return out;
}

bool is_query_or_key(const std::string& module) {
  return module.ends_with("q_proj") || module.ends_with("k_proj") || module.ends_with("qkv_proj");
}

// One linear's encoding. With a search, its weight and inputs are scaled already.
Result<QuantizedMatrix> encode(const LinearTensor& linear, std::vector<float>& weight, const InputStatistics* inputs,
                               const QuantizeModelOptions& options) {
  const QuantFormat& format = *options.format;
  if (linear.plain || options.in_8bit.contains(linear.module)) {
    auto m = encode_int8({weight, linear.rows, linear.cols}, {}, nullptr);
    if (m.ok()) return m;
    return locate_error(m.error(), linear.module);
  }
  Calibration calibration;
  const InputQuant input = options.encode.input;
  if (inputs != nullptr) {
    const bool fixed = input == InputQuant::e4m3_static || input == InputQuant::int8_static;
    calibration = {.inputs = inputs->inputs(),
                   .absmax = fixed ? input_range(*inputs, options.input_range, input) : inputs->absmax};
  }
  const Calibration* known = inputs != nullptr ? &calibration : nullptr;
  const FloatMatrix matrix{weight, linear.rows, linear.cols};
  const auto named = [&](Result<QuantizedMatrix> m) -> Result<QuantizedMatrix> {
    if (m.ok()) return m;
    return locate_error(m.error(), linear.module);
  };
  if (format.scaling == InputScaling::smooth) return named(encode_int8(matrix, options.encode, known));
  if (format.scaling != InputScaling::awq) return named(format.encode(matrix, options.encode, known));
  const auto group = check_int4_group(linear.cols, options.encode.group);
  if (!group) return locate_error(group.error(), linear.module);
  // Clipping queries and keys changes attention's scores too much for what it saves in this linear (AWQ, section 5).
  if (!is_query_or_key(linear.module)) {
    PINION_OK(check_encodable(matrix));
    awq_clip(weight, linear.rows, linear.cols, calibration.inputs, *group, options.encode.zero_points);
  }
  return named(encode_int4({weight, linear.rows, linear.cols}, options.encode, known));
}

// |x (Q - W)^T|^2 over |x W^T|^2, of at most so many rows of x; without any, of the identity.
constexpr int64_t kErrorRows = 64;
double relative_error(const QuantizedMatrix& m, std::span<const float> weight, const InputStatistics* inputs) {
  const int64_t cols = m.cols, rows = inputs == nullptr ? 0 : std::min(kErrorRows, inputs->inputs().rows);
  std::vector<double> moved(m.rows), whole(m.rows);
  ThreadPool pool(available_cpus());
  pool.run(m.rows, [&](int64_t n) {
    std::vector<float> q(cols);
    decode_rows(m, n, n + 1, q);
    const float* w = weight.data() + n * cols;
    for (int64_t k = 0; rows == 0 && k < cols; ++k) {
      moved[n] += static_cast<double>(q[k] - w[k]) * (q[k] - w[k]);
      whole[n] += static_cast<double>(w[k]) * w[k];
    }
    for (int64_t t = 0; t < rows; ++t) {
      const float* x = inputs->sample.data() + t * cols;
      double difference = 0, sum = 0;
      for (int64_t k = 0; k < cols; ++k) {
        difference += static_cast<double>(x[k]) * (q[k] - w[k]);
        sum += static_cast<double>(x[k]) * w[k];
      }
      moved[n] += difference * difference, whole[n] += sum * sum;
    }
  });
  const double total = std::accumulate(whole.begin(), whole.end(), 0.0);
  return total > 0 ? std::accumulate(moved.begin(), moved.end(), 0.0) / total : 0;
}

uint64_t exported_bytes(std::span<const ExportedTensor> tensors) {
  uint64_t sum = 0;
  for (const ExportedTensor& t : tensors) sum += t.data.size();
  return sum;
}

// Modules by scheme, in the order in which the schemes come up.
std::vector<SchemeGroup> group_schemes(const std::vector<LinearTensor>& linears, const std::vector<Scheme>& schemes) {
  std::vector<SchemeGroup> groups;
  for (size_t i = 0; i < linears.size(); ++i) {
    auto g = std::ranges::find(groups, schemes[i], &SchemeGroup::scheme);
    if (g == groups.end()) g = groups.insert(groups.end(), SchemeGroup{schemes[i], {}});
    g->modules.push_back(linears[i].module);
  }
  return groups;
}

}  // namespace

Result<QuantizedModel> quantize_model(const Checkpoint& checkpoint, const Model& model,
                                      const QuantizeModelOptions& options, const InputCollector* inputs) {
  QuantizedModel out;
  std::vector<std::string> ignored;
  PINION_TRY(const std::vector<LinearTensor> linears, list_linears(checkpoint, model.graph, options, ignored));
  if (linears.empty()) return fail(Errc::invalid_argument, "there is no linear left to quantise", "--exclude_modules");
  const bool calibrated = options.format->needs_inputs;
  check(!calibrated || inputs != nullptr, "quantize_model: the format needs inputs");

  ScaledWeights scaled;
  for (const LinearTensor& l : linears) {
    const InputStatistics* seen = inputs != nullptr ? inputs->find(l.part) : nullptr;
    if (l.plain) continue;
    if (calibrated && seen == nullptr) return fail(Errc::internal, "the calibration did not reach it", l.module);
    if (calibrated) {
      PINION_TRY(scaled.weights[l.tensor], read_floats(checkpoint, l.tensor, l.rows * l.cols));
      scaled.inputs[l.tensor] = *seen;
      if (std::holds_alternative<MoeLinear>(model.graph.nodes()[l.node].op) && !scaled.experts.contains(l.node)) {
        scaled.experts[l.node] = *inputs->find_layer(l.part);
      }
    }
  }
  if (options.format->scaling != InputScaling::none) {
    std::vector<LinearTensor> searched;
    std::ranges::copy_if(linears, std::back_inserter(searched), [](const LinearTensor& l) { return !l.plain; });
    PINION_OK(fold_scales(checkpoint, model.graph, searched, options.format->scaling, options.encode, scaled));
  }

  // Searches use all threads themselves; plain rounding runs a linear per thread.
  std::vector<Result<std::vector<ExportedTensor>>> exported(linears.size(), std::vector<ExportedTensor>());
  std::vector<Scheme> schemes(linears.size());
  out.report.resize(linears.size());
  std::mutex progress;
  int64_t done = 0;
  const auto one = [&](int64_t i) {
    const LinearTensor& l = linears[i];
    exported[i] = [&]() -> Result<std::vector<ExportedTensor>> {
      std::vector<float> weight;
      const InputStatistics* seen = nullptr;
      if (calibrated && !l.plain) {
        weight = std::move(scaled.weights[l.tensor]);
        seen = &scaled.inputs[l.tensor];
      } else {
        PINION_TRY(weight, read_floats(checkpoint, l.tensor, l.rows * l.cols));
        seen = inputs != nullptr ? inputs->find(l.part) : nullptr;
      }
      LinearReport& report = out.report[i];
      report = {.module = l.module, .scheme = {}, .elements = l.rows * l.cols};
      if (options.measure_8bit && !l.plain) {
        PINION_TRY(const QuantizedMatrix m, encode_int8({weight, l.rows, l.cols}, {}, nullptr));
        report.error_8bit = relative_error(m, weight, seen);
        report.bytes_8bit = m.codes.size() + 4 * m.scales.size();
      }
      // Searches clip the weight in place: errors are against what it was.
      const std::vector<float> before = options.format->scaling == InputScaling::awq ? weight : std::vector<float>();
      PINION_TRY(const QuantizedMatrix m, encode(l, weight, seen, options));
      report.error = relative_error(m, before.empty() ? weight : before, seen);
      report.scheme = str(m.scheme);
      schemes[i] = m.scheme;
      PINION_TRY(std::vector<ExportedTensor> tensors, export_compressed_tensors(l.module, m));
      report.bytes = exported_bytes(tensors);
      return tensors;
    }();
    const std::lock_guard lock(progress);
    ++done;
    if (options.progress) options.progress(done, std::ssize(linears));
  };
  if (calibrated) {
    for (int64_t i = 0; i < std::ssize(linears); ++i) one(i);
  } else {
    ThreadPool pool(available_cpus());
    pool.run(std::ssize(linears), one);
  }

  std::set<std::string> replaced;
  for (size_t i = 0; i < linears.size(); ++i) {
    PINION_TRY(std::vector<ExportedTensor> tensors, std::move(exported[i]));
    PINION_TRY(const TensorRef before, checkpoint.tensor(linears[i].tensor));
    out.bytes_before += before.data.size();
    for (ExportedTensor& t : tensors) {
      out.bytes_after += t.data.size();
      out.made.push_back(std::move(t));
    }
    replaced.insert(linears[i].tensor);
  }
  for (auto& [name, values] : scaled.changed) {
    const auto bytes = std::as_bytes(std::span(values));
    PINION_TRY(const TensorRef before, checkpoint.tensor(name));
    out.made.push_back(
        {name, DType::f32, {before.shape.dims().begin(), before.shape.dims().end()}, {bytes.begin(), bytes.end()}});
    replaced.insert(name);
  }
  for (const auto& [name, scale] : options.kv_scales) {
    const auto bytes = std::as_bytes(std::span(&scale, 1));
    out.made.push_back({name, DType::f32, {1}, {bytes.begin(), bytes.end()}});
    replaced.insert(name);
  }
  out.linears = std::ssize(linears);
  for (const ExportedTensor& t : out.made) out.tensors.push_back({t.name, t.dtype, t.shape, std::span(t.data)});
  for (const std::string& name : checkpoint.names()) {
    if (replaced.contains(name)) continue;
    PINION_TRY(const TensorRef t, checkpoint.tensor(name));
    out.tensors.push_back({name, t.dtype, {t.shape.dims().begin(), t.shape.dims().end()}, t.data});
  }
  out.config = checkpoint.config();
  out.config["quantization_config"] = compressed_tensors_config(group_schemes(linears, schemes), ignored);
  if (!options.kv_scales.empty()) {
    out.config["quantization_config"]["kv_cache_scheme"] = {
        {"num_bits", 8}, {"type", "float"}, {"strategy", "tensor"}, {"symmetric", true}, {"dynamic", false}};
  }
  return out;
}

}  // namespace pinion
