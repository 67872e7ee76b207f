// Kernel selection: for every distinct problem (op, bucket, weights) the kernels that accept it are ranked by their own
// estimate, and the best few are timed on the device. Results go into a cache keyed by device, kernel set and problem.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <tuple>

#include "compiler/compiler.h"
#include "compiler/tuning_cache.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

constexpr std::array<int32_t, 6> kBuckets{1, 4, 8, 16, 64, 512};  // powers at which the best tile changes on a CPU
constexpr size_t kTimed = 4;                                      // candidates that the estimate leaves
constexpr double kTimeBudget = 0.02;  // seconds of repetitions per candidate: enough to settle within a few percent

struct Candidate {
  const Kernel* kernel;
  Tuning tuning;
  double estimate_us, measured_us = 0;
};

Result<std::unique_ptr<Buffer>> random_tensor(Device& device, DType type, int64_t n) {
  PINION_TRY(auto buffer, device.allocate(std::max<size_t>(64, n * byte_size(type))));
  uint32_t state = 12345;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 1664525 + 1013904223;
    store_f32(buffer->data(), type, i, static_cast<float>(state >> 8) / (1 << 24) - 0.5f);
  }
  return buffer;
}

// Times one linear candidate: the median of repetitions over real-size weights.
Result<double> time_linear(const Candidate& c, const Call& call, Device& device, Stream& stream, Buffer& weights,
                           Buffer& bias) {
  const auto& op = std::get<Linear>(*call.op);
  PINION_TRY(auto x, random_tensor(device, DType::f32, call.rows * op.in));
  PINION_TRY(auto y, device.allocate(call.rows * op.output_width() * 4));
  const size_t work = c.kernel->workspace ? c.kernel->workspace(call, c.tuning, device.info()) : 0;
  PINION_TRY(auto workspace, device.allocate(std::max<size_t>(work, 64)));
  const TensorView in{x->data(), DType::f32, {call.rows, op.in}},
      out{y->data(), DType::f32, {call.rows, op.output_width()}};
  std::vector<WeightView> views{{call.weights[0], weights.data()}};
  if (op.bias) views.push_back({call.weights[1], bias.data()});
  const LaunchArgs args{call.op, {&in, 1}, {&out, 1}, views, {workspace->data(), work}, nullptr, c.tuning};
  std::vector<double> times;
  double total = 0;
  for (int i = 0; i < 3 || (total < kTimeBudget && i < 50); ++i) {
    const auto start = std::chrono::steady_clock::now();
    c.kernel->launch(args, stream);
    stream.synchronize();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i > 0) times.push_back(seconds);  // the first run touches the pages
    total += seconds;
  }
  std::ranges::nth_element(times, times.begin() + times.size() / 2);
  return times[times.size() / 2] * 1e6;
}

class Selector {
 public:
  Selector(const Backend& backend, Device& device, const BuildOptions& options, DType kv_dtype, BuildReport& report)
      : backend_(backend),
        device_(device),
        options_(options),
        kv_dtype_(kv_dtype),
        report_(report),
        stream_(device.make_stream()),
        cache_(options.tuning_cache, device.info()) {}

  Result<KernelChoice> choose(const Node& node, std::span<const WeightSpec> weights, int32_t tokens, bool output_rows) {
    const int64_t rows = output_rows ? std::min(tokens, 16) : tokens;  // few rows of a long prefill need logits
    Call call{.op = &node.op,
              .rows = rows,
              .seqs = std::min<int64_t>(rows, 16),
              .inputs = static_cast<int>(node.in.size()),
              .weights = weights,
              .kv_dtype = kv_dtype_,
              .deterministic = options_.deterministic};
    std::string key = fmt::format("{} rows={} inputs={} kv={}{}", to_text(node.op), rows, call.inputs, name(kv_dtype_),
                                  options_.deterministic ? " deterministic" : "");
    for (const WeightSpec& w : weights) key += fmt::format(" {}", name(w.dtype));
    if (auto* a = std::get_if<Attention>(&node.op)) key += fmt::format(" window={}", a->window);
    std::string memo = key;  // layers differ only in their numbers: one decision serves them all
    if (const auto at = memo.find("layer="); at != std::string::npos) memo.erase(at, memo.find_first_of(",)", at) - at);
    if (const auto known = chosen_.find(memo); known != chosen_.end()) return known->second;
    PINION_TRY(KernelChoice choice, select(node, call, memo));
    chosen_[memo] = choice;
    return choice;
  }
  Status save() { return cache_.save(); }

 private:
  Result<KernelChoice> select(const Node& node, const Call& call, const std::string& key) {
    std::vector<Candidate> candidates;
    std::string reasons;
    auto kernels = backend_.kernels(kind(node.op));
    auto matches = [&](const Kernel& k) {
      return options_.force_kernel.empty() || k.name.find(options_.force_kernel) != std::string_view::npos;
    };
    const bool forced = std::ranges::any_of(
        kernels, [&](const Kernel& k) { return matches(k) && k.why_not(call, device_.info()).empty(); });
    for (const Kernel& k : kernels) {
      std::string why = k.why_not(call, device_.info());
      if (why.empty() && forced && !matches(k)) why = "another kernel is forced";
      if (why.empty() && call.deterministic && !k.batch_invariant) why = "its result depends on the batch";
      if (!why.empty()) {
        reasons += fmt::format("    {:28} no: {}\n", k.name, why);
        continue;
      }
      const std::vector<Tuning> tunings = k.tunings ? k.tunings(call, device_.info()) : std::vector<Tuning>{{}};
      for (const Tuning& t : tunings) candidates.push_back({&k, t, k.estimate_us(call, t, device_.info())});
    }
    if (candidates.empty()) {
      return fail(Errc::unsupported, fmt::format("no kernel of {} runs {}", backend_.name(), to_text(node.op)),
                  node.scope, reasons);
    }
    std::ranges::stable_sort(candidates, {}, &Candidate::estimate_us);
    const bool timed = std::holds_alternative<Linear>(node.op) && options_.time_kernels && candidates.size() > 1;
    size_t best = 0;
    std::string how = "by estimate";
    if (timed) {
      if (const auto cached = cache_.find(key)) {
        const auto it = std::ranges::find_if(candidates, [&](const Candidate& c) {
          return c.kernel->name == cached->kernel && c.tuning == cached->tuning;
        });
        if (it != candidates.end()) {
          it->measured_us = cached->measured_us;
          best = it - candidates.begin();
          how = "tuning cache";
          ++report_.from_cache;
        }
      }
      if (how != "tuning cache") {
        PINION_TRY(best, time_all(candidates, call));
        how = "timed";
        cache_.put(key, {std::string(candidates[best].kernel->name), candidates[best].tuning,
                         candidates[best].estimate_us, candidates[best].measured_us});
        ++report_.tuned;
      }
    }
    explain(key, candidates, best, how, reasons);
    const Candidate& c = candidates[best];
    return KernelChoice{std::string(c.kernel->name), c.tuning, c.estimate_us, c.measured_us};
  }

  Result<size_t> time_all(std::vector<Candidate>& candidates, const Call& call) {
    PINION_TRY(Buffer * weights, weights_for(call.weights[0]));
    PINION_TRY(auto bias, random_tensor(device_, DType::f32, call.weights.size() > 1 ? call.weights[1].cols : 1));
    const size_t n = std::min(kTimed, candidates.size());
    for (size_t i = 0; i < n; ++i) {
      PINION_TRY(candidates[i].measured_us, time_linear(candidates[i], call, device_, *stream_, *weights, *bias));
    }
    return std::ranges::min_element(candidates.begin(), candidates.begin() + n, {}, &Candidate::measured_us) -
           candidates.begin();
  }

  // One buffer serves every problem over the same weight shape: filling it costs more than timing it.
  Result<Buffer*> weights_for(const WeightSpec& spec) {
    const std::tuple key{spec.rows, spec.cols, spec.dtype};
    if (weights_ && weights_key_ == key) return weights_.get();
    weights_.reset();
    PINION_TRY(weights_, device_.allocate(std::max<size_t>(64, spec.bytes())));
    weights_key_ = key;
    fill_dummy("timing.weight", spec.dtype, {weights_->data(), spec.bytes()}, spec.cols);
    return weights_.get();
  }

  void explain(const std::string& key, std::span<const Candidate> candidates, size_t best, const std::string& how,
               const std::string& reasons) {
    report_.explanation += fmt::format("{}\n", key);
    for (size_t i = 0; i < candidates.size(); ++i) {
      const Candidate& c = candidates[i];
      const auto& t = c.tuning.value;
      report_.explanation += fmt::format("  {} {:28} [{} {} {} {}] estimate {:.1f} us{}{}\n", i == best ? "*" : " ",
                                         c.kernel->name, t[0], t[1], t[2], t[3], c.estimate_us,
                                         c.measured_us > 0 ? fmt::format(", measured {:.1f} us", c.measured_us) : "",
                                         i == best ? fmt::format("  <- chosen ({})", how) : "");
    }
    report_.explanation += reasons;
  }

  const Backend& backend_;
  Device& device_;
  const BuildOptions& options_;
  DType kv_dtype_;
  BuildReport& report_;
  std::unique_ptr<Stream> stream_;
  TuningCache cache_;
  std::map<std::string, KernelChoice> chosen_;
  std::unique_ptr<Buffer> weights_;  // the last shape timed: a node is chosen for all buckets in a row
  std::tuple<int64_t, int64_t, DType> weights_key_;
};

}  // namespace

Result<std::vector<Program>> select_kernels(const Graph& graph, std::span<const PackedWeight> weights,
                                            std::span<const std::vector<int32_t>> node_weights, const Backend& backend,
                                            Device& device, const BuildOptions& options, DType kv_dtype,
                                            BuildReport& report) {
  Selector selector(backend, device, options, kv_dtype, report);
  std::vector<Program> programs;
  for (int32_t bucket : kBuckets) programs.push_back({bucket, {}});
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& node = graph.nodes()[i];
    std::vector<WeightSpec> specs;
    for (int32_t id : node_weights[i]) specs.push_back(weights[id].spec);
    const bool output_rows = !node.in.empty() && graph.spec(node.in[0]).rows == Rows::outputs;
    for (Program& p : programs) {
      // Batch invariance needs one kernel for all sizes: the choice for a middle bucket serves every program.
      const int32_t tokens = options.deterministic ? 16 : p.tokens;
      PINION_TRY(KernelChoice choice, selector.choose(node, specs, tokens, output_rows));
      p.steps.push_back(std::move(choice));
    }
  }
  PINION_OK(selector.save());
  return programs;
}

}  // namespace pinion
