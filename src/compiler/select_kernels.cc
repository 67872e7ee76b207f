// Kernel selection: for every distinct problem (op, bucket, weights) the kernels that accept it are ranked by their own
// estimate, and the best few are timed on the device: alone, and where a model's step is known, those close to the best
// once more inside of it. Results go into a cache keyed by device, kernel set and problem.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "base/hash.h"
#include "compiler/compiler.h"
#include "compiler/time_linear.h"
#include "compiler/time_step.h"
#include "compiler/tuning_cache.h"

namespace pinion {
namespace {

// Where the best tile changes on a CPU; a GPU's kernels change with every power of two, up to where one large tile
// wins.
constexpr int32_t kHostBuckets[] = {1, 4, 8, 16, 64, 512};
constexpr int32_t kDeviceBuckets[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048};
constexpr size_t kTimed = 4, kTimedOnDevice = 16;  // candidates that the estimate leaves
constexpr double kWorthTiming = 2.5;               // times the best estimate; one always has company
constexpr double kClose = 1.2;                     // times the fastest alone: worth timing inside a step
constexpr double kFarBehind = 1.02;                // times the fastest window, whose times repeat within a hundredth
constexpr int kRounds = 2;                         // over all candidates: clocks and neighbours change slowly
constexpr int32_t kMostDecoded = 128;  // rows of the steps that are all decodes and bound by reading weights

// Rows of logits in a step of so many tokens. A GPU's steps up to the largest recorded ones may be all decodes, a row
// each; in longer ones, and on a CPU, where it makes no difference, most tokens belong to prompts.
int64_t output_rows_on_device(int64_t tokens) {
  return tokens <= 256 ? tokens : 64;
}

struct Candidate {
  const Kernel* kernel;
  Tuning tuning;
  double estimate_us, measured_us = 0;
};

struct Chosen {
  KernelChoice choice;
  std::string problem;  // what it was chosen for
};

class Selector {
 public:
  Selector(const Backend& backend, Device& device, const BuildOptions& options, DType kv_dtype, BuildReport& report)
      : backend_(backend),
        device_(device),
        options_(options),
        kv_dtype_(kv_dtype),
        report_(report),
        timer_(backend, device),
        cache_(options.tuning_cache, device.info()) {}

  Result<Chosen> choose(const Node& node, std::span<const WeightSpec> weights, const ValueTypes& values, int32_t tokens,
                        bool output_rows) {
    int64_t rows = tokens;
    if (output_rows) rows = device_.host_visible() ? std::min(tokens, 16) : output_rows_on_device(tokens);
    Call call{.op = &node.op,
              .rows = rows,
              .seqs = std::min<int64_t>(rows, 16),
              .inputs = static_cast<int>(node.in.size()),
              .weights = weights,
              .values = values,
              .kv_dtype = kv_dtype_,
              .deterministic = options_.deterministic};
    std::string key = fmt::format("{} rows={} inputs={} kv={}{}", to_text(node.op), rows, call.inputs, name(kv_dtype_),
                                  options_.deterministic ? " deterministic" : "");
    for (const WeightSpec& w : weights) key += fmt::format(" {}", str(w));
    if (!(values == ValueTypes{})) key += fmt::format(" values {} -> {}", name(values.in[0]), name(values.out[0]));
    if (auto* a = std::get_if<Attention>(&node.op)) key += fmt::format(" window={}", a->window);
    std::string memo = key;  // layers differ only in their numbers: one decision serves them all
    if (const auto at = memo.find("layer="); at != std::string::npos) memo.erase(at, memo.find_first_of(",)", at) - at);
    if (const auto known = chosen_.find(memo); known != chosen_.end()) return Chosen{known->second, memo};
    PINION_TRY(KernelChoice choice, select(node, call, memo));
    chosen_[memo] = choice;
    return Chosen{choice, memo};
  }

  // One linear of the window after another takes the kernel with which the window is fastest, twice over: what is best
  // for one depends on the others. `problems`: of the program's steps.
  Status refine(StepTimer& timer, Program& program, std::span<const std::string> problems) {
    std::vector<std::string> linears;
    std::string all;
    for (size_t i = timer.first_node(); i < timer.end_node(); ++i) {
      all += problems[i] + "\n";
      const bool open = rivals_.contains(problems[i]) && std::ranges::find(linears, problems[i]) == linears.end();
      if (open) linears.push_back(problems[i]);
    }
    const auto take = [&](const std::string& problem, const KernelChoice& choice) {
      for (size_t i = 0; i < problems.size(); ++i) {
        if (problems[i] == problem) program.steps[i] = choice;
      }
    };
    const auto key = [&](const std::string& problem) { return problem + " in step " + hash128(all).hex(); };
    const auto known = [&](const std::string& problem) -> std::optional<KernelChoice> {
      const auto cached = cache_.find(key(problem));
      const auto is_it = [&](const KernelChoice& r) {
        return r.kernel == cached->kernel && r.tuning == cached->tuning;
      };
      return cached && std::ranges::any_of(rivals_[problem], is_it) ? cached : std::nullopt;
    };
    if (std::ranges::all_of(linears, [&](const std::string& l) { return known(l).has_value(); })) {
      for (const std::string& problem : linears) take(problem, *known(problem));
      return {};
    }
    // Whoever is far behind after one round is out, and the second pass is among those that were close in the first.
    std::map<std::string, std::vector<size_t>> open;
    for (const std::string& problem : linears) {
      open[problem].resize(rivals_[problem].size());
      std::iota(open[problem].begin(), open[problem].end(), size_t{0});
    }
    for (int pass = 0; pass < 2; ++pass) {
      for (const std::string& problem : linears) {
        const std::vector<KernelChoice>& rivals = rivals_[problem];
        std::vector<size_t>& tried = open[problem];
        if (tried.size() < 2) continue;
        std::vector<double> us(rivals.size(), std::numeric_limits<double>::infinity());
        for (int round = 0; round < kRounds; ++round) {
          const double limit = kFarBehind * *std::ranges::min_element(us);
          for (const size_t r : tried) {
            if (us[r] > limit) continue;
            take(problem, rivals[r]);
            const auto window = timer.time(program.steps, program.tokens);
            if (!window) {
              take(problem, chosen_[problem]);
              return window.error();
            }
            us[r] = std::min(us[r], *window);
          }
        }
        const size_t fastest = std::ranges::min_element(us) - us.begin();
        take(problem, rivals[fastest]);
        cache_.put(key(problem), rivals[fastest]);
        report_.explanation += problem + ", in a window of the step\n";
        for (const size_t r : tried) {
          const auto& t = rivals[r].tuning.value;
          report_.explanation += fmt::format("  {} {:28} [{} {} {} {}] {:.1f} us\n", r == fastest ? "*" : " ",
                                             rivals[r].kernel, t[0], t[1], t[2], t[3], us[r]);
        }
        std::erase_if(tried, [&](size_t r) { return us[r] > kFarBehind * us[fastest]; });
      }
    }
    return {};
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
      if (why.empty() && call.deterministic) why = why_not_other_rows(k, call);
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
    std::string how = candidates.size() == 1                     ? "the only one"
                      : !std::holds_alternative<Linear>(node.op) ? "by estimate: only linears are timed"
                                                                 : "by estimate";
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
    if (timed && !device_.host_visible()) keep_rivals(key, candidates, best, how == "timed");
    return to_choice(candidates[best]);
  }

  static KernelChoice to_choice(const Candidate& c) {
    return {std::string(c.kernel->name), c.tuning, c.estimate_us, c.measured_us};
  }

  // The best and those close to it: by their times, or, where only the best one's is known, by estimate.
  void keep_rivals(const std::string& key, std::span<const Candidate> candidates, size_t best, bool by_time) {
    std::vector<KernelChoice> rivals;
    for (size_t i = 0; i < candidates.size(); ++i) {
      const Candidate& c = candidates[i];
      const bool close = by_time ? c.measured_us > 0 && c.measured_us <= kClose * candidates[best].measured_us
                                 : i < kTimedOnDevice && c.estimate_us <= kWorthTiming * candidates[0].estimate_us;
      if (close || i == best) rivals.push_back(to_choice(c));
    }
    if (rivals.size() > 1) rivals_[key] = std::move(rivals);
  }

  // A deterministic engine's choice serves every number of rows.
  std::string why_not_other_rows(const Kernel& k, Call call) const {
    for (int64_t rows : {1, 8192}) {
      call.rows = rows;
      if (std::string why = k.why_not(call, device_.info()); !why.empty()) {
        return fmt::format("not of {} rows, which a deterministic engine has too: {}", rows, why);
      }
    }
    return {};
  }

  // Round after round over all of them, and each one's best counts: clocks and neighbours change slowly.
  Result<size_t> time_all(std::vector<Candidate>& candidates, const Call& call) {
    const bool on_host = device_.host_visible();
    size_t n = std::min(on_host ? kTimed : kTimedOnDevice, candidates.size());
    if (!on_host) {
      while (n > 2 && candidates[n - 1].estimate_us > kWorthTiming * candidates[0].estimate_us) --n;
    }
    for (int round = 0; round < (on_host ? 1 : kRounds); ++round) {
      for (size_t i = 0; i < n; ++i) {
        Candidate& c = candidates[i];
        PINION_TRY(const double us, timer_.time(*c.kernel, c.tuning, call));
        c.measured_us = round == 0 ? us : std::min(c.measured_us, us);
      }
    }
    return std::ranges::min_element(candidates.begin(), candidates.begin() + n, {}, &Candidate::measured_us) -
           candidates.begin();
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
  LinearTimer timer_;
  TuningCache cache_;
  std::map<std::string, KernelChoice> chosen_;
  std::map<std::string, std::vector<KernelChoice>> rivals_;  // by problem, where there is more than one
};

}  // namespace

Result<std::vector<Program>> select_kernels(const Graph& graph, std::span<const PackedWeight> weights,
                                            std::span<const std::vector<int32_t>> node_weights, const Backend& backend,
                                            Device& device, const BuildOptions& options, DType kv_dtype,
                                            BuildReport& report) {
  Selector selector(backend, device, options, kv_dtype, report);
  std::vector<Program> programs;
  const auto buckets = device.host_visible() ? std::span<const int32_t>(kHostBuckets) : kDeviceBuckets;
  for (int32_t bucket : buckets) programs.push_back({bucket, {}});
  std::vector<std::vector<std::string>> problems(programs.size());
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& node = graph.nodes()[i];
    std::vector<WeightSpec> specs;
    for (int32_t id : node_weights[i]) specs.push_back(weights[id].spec);
    const bool output_rows = !node.in.empty() && graph.spec(node.in[0]).rows == Rows::outputs;
    for (size_t b = 0; b < programs.size(); ++b) {
      Program& p = programs[b];
      // Batch invariance needs one kernel for all sizes: the choice for a middle bucket serves every program.
      const int32_t tokens = options.deterministic ? 16 : p.tokens;
      PINION_TRY(Chosen chosen, selector.choose(node, specs, value_types(graph, node), tokens, output_rows));
      p.steps.push_back(std::move(chosen.choice));
      problems[b].push_back(std::move(chosen.problem));
    }
  }
  const bool refines = options.time_kernels && !options.deterministic && options.force_kernel.empty();
  const auto timer =
      refines ? StepTimer::create(graph, weights, node_weights, backend, device, kv_dtype, options.block_size)
              : nullptr;
  for (size_t b = 0; timer != nullptr && b < programs.size() && programs[b].tokens <= kMostDecoded; ++b) {
    const Status refined = selector.refine(*timer, programs[b], problems[b]);
    if (refined.ok()) continue;
    if (refined.error().code != Errc::exhausted) return refined.error();
    spdlog::info("no room on the device to time a step of {} sequences: linears stay as they were timed alone",
                 programs[b].tokens);
    break;
  }
  PINION_OK(selector.save());
  return programs;
}

}  // namespace pinion
