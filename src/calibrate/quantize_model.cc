#include "calibrate/quantize_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

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
    const bool experts = std::holds_alternative<MoeLinear>(n.op);
    if (!experts && !std::holds_alternative<Linear>(n.op)) continue;
    for (const WeightPart& part : n.weights[0].parts) {
      std::string tensor = checkpoint_name(checkpoint, part.name);
      const bool fused = tensor.empty() && !part.fused.name.empty();
      if (fused) tensor = checkpoint_name(checkpoint, part.fused.name);
      if (tensor.empty())
        return fail(Errc::not_found, "the tensor \"" + part.name + "\" is missing", checkpoint.dir().string());
      if (!listed.insert(tensor).second) continue;
      const std::string module = module_of(tensor);
      // The head decides every token and routers are tiny: formats of others leave them in floats too.
      const bool head = graph.spec(n.out[0]).rows == Rows::outputs;
      if (head || scores.contains(n.out[0].id) || is_excluded(module, options)) {
        ignored.push_back(module);
        continue;
      }
      if (part.transposed || part.stack > 0) {
        return fail(Errc::unsupported,
                    part.stack > 0 ? "experts that one tensor stacks cannot be quantised yet"
                                   : "weights that are stored transposed cannot be quantised yet",
                    module, "leave it out with --exclude_modules \"" + module + "\"");
      }
      if (experts && options.format->needs_inputs) {
        return fail(Errc::unsupported, fmt::format("{} cannot be calibrated for experts yet", options.format->name),
                    module, "take a format that needs no calibration, or --exclude_modules");
      }
      out.push_back({.module = module,
                     .tensor = tensor,
                     .part = part.name,
                     .rows = fused ? part.fused.rows : part.rows,
                     .cols = n.weights[0].cols,
                     .node = i,
                     .fused = fused});
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
  Calibration calibration;
  if (inputs != nullptr) calibration = {.inputs = inputs->inputs(), .absmax = inputs->absmax};
  const Calibration* known = inputs != nullptr ? &calibration : nullptr;
  const FloatMatrix matrix{weight, linear.rows, linear.cols};
  const auto named = [&](Result<QuantizedMatrix> m) -> Result<QuantizedMatrix> {
    if (m.ok()) return m;
    return fail(m.error().code, m.error().message, linear.module);
  };
  if (format.scaling == InputScaling::smooth) return named(encode_int8(matrix, options.encode, known));
  if (format.scaling != InputScaling::awq) return named(format.encode(matrix, options.encode, known));
  const auto group = check_int4_group(linear.cols, options.encode.group);
  if (!group) return fail(group.error().code, group.error().message, linear.module);
  // Clipping queries and keys changes attention's scores too much for what it saves in this linear (AWQ, section 5).
  if (!is_query_or_key(linear.module)) {
    PINION_OK(check_encodable(matrix));
    awq_clip(weight, linear.rows, linear.cols, calibration.inputs, *group, options.encode.zero_points);
  }
  return named(encode_int4({weight, linear.rows, linear.cols}, options.encode, known));
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
    if (calibrated && seen == nullptr) return fail(Errc::internal, "the calibration did not reach it", l.module);
    if (calibrated) {
      PINION_TRY(scaled.weights[l.tensor], read_floats(checkpoint, l.tensor, l.rows * l.cols));
      scaled.inputs[l.tensor] = *seen;
    }
  }
  if (options.format->scaling != InputScaling::none) {
    PINION_OK(fold_scales(checkpoint, model.graph, linears, options.format->scaling, options.encode, scaled));
  }

  // Searches use all threads themselves; plain rounding runs a linear per thread.
  std::vector<Result<std::vector<ExportedTensor>>> exported(linears.size(), std::vector<ExportedTensor>());
  std::vector<Scheme> schemes(linears.size());
  std::mutex progress;
  int64_t done = 0;
  const auto one = [&](int64_t i) {
    const LinearTensor& l = linears[i];
    exported[i] = [&]() -> Result<std::vector<ExportedTensor>> {
      std::vector<float> weight;
      const InputStatistics* seen = nullptr;
      if (calibrated) {
        weight = std::move(scaled.weights[l.tensor]);
        seen = &scaled.inputs[l.tensor];
      } else {
        PINION_TRY(weight, read_floats(checkpoint, l.tensor, l.rows * l.cols));
        seen = inputs != nullptr ? inputs->find(l.part) : nullptr;
      }
      PINION_TRY(const QuantizedMatrix m, encode(l, weight, seen, options));
      schemes[i] = m.scheme;
      return export_compressed_tensors(l.module, m);
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
    if (!(schemes[i] == schemes[0])) {
      return fail(Errc::unsupported,
                  fmt::format("its scheme is {}, the first linear's {}", str(schemes[i]), str(schemes[0])),
                  linears[i].module, "leave it out with --exclude_modules");
    }
    PINION_TRY(const TensorRef before, checkpoint.tensor(linears[i].tensor));
    out.bytes_before += before.data.size();
    for (ExportedTensor& t : tensors) {
      out.bytes_after += t.data.size();
      out.made.push_back(std::move(t));
    }
    replaced.insert(linears[i].tensor);
  }
  for (auto& [name, values] : scaled.vectors) {
    const auto bytes = std::as_bytes(std::span(values));
    out.made.push_back({name, DType::f32, {std::ssize(values)}, {bytes.begin(), bytes.end()}});
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
  out.config["quantization_config"] = compressed_tensors_config(schemes[0], ignored);
  return out;
}

}  // namespace pinion
