// pinion diff: the un-fused graph on the reference kernels against the engine, node by node, over the same tokens. Both
// keep the values' ids through the passes, so a value that exists in both is compared; the first that diverges is
// named.
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <random>

#include "cli/model.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace {

struct Args {
  ModelArgs model;
  std::string against, input_ids;
  int32_t tokens = 24;
  double tolerance = 0;
};

using Values = std::map<int32_t, std::vector<float>>;  // by value id

Values run_values(EngineExecutor& e, const Graph& g, std::span<const int32_t> ids) {
  Values values;
  e.observe([&](size_t node, std::span<const TensorView> outputs) {
    for (size_t i = 0; i < outputs.size(); ++i) {
      const float* p = outputs[i].as<float>();
      values[g.nodes()[node].out[i].id].assign(p, p + outputs[i].shape.elements());
    }
  });
  const int32_t n = static_cast<int32_t>(ids.size());
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

struct Divergence {
  double worst = 0, rms = 0, scale = 0;
  int64_t at = 0;
};

Divergence compare(const std::vector<float>& want, const std::vector<float>& got) {
  Divergence d;
  double sum = 0, square = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = std::abs(static_cast<double>(want[i]) - got[i]);
    sum += difference * difference;
    square += static_cast<double>(want[i]) * want[i];
    if (!(difference <= d.worst))
      d.worst = std::isnan(difference) ? INFINITY : difference, d.at = static_cast<int64_t>(i);
  }
  d.rms = std::sqrt(sum / static_cast<double>(want.size()));
  d.scale = std::sqrt(square / static_cast<double>(want.size()));
  return d;
}

Status run(Args a) {
  ModelArgs reference = a.model;
  reference.build.target = "reference";
  reference.build.disabled_passes = {"all"};
  reference.build.force_kernel.clear();
  reference.build.deterministic = false;
  if (!a.against.empty()) reference.model = a.against;
  if (Engine::is_engine_dir(reference.model)) {
    return fail(Errc::invalid_argument, "an engine does not hold its un-fused graph", a.model.model,
                "name the checkpoint: pinion diff ENGINE --checkpoint_dir HF");
  }
  const ExecutorOptions defaults{.max_batch_size = 1, .max_num_tokens = 512, .max_outputs = 512};
  PINION_TRY(OpenModel fast, open_model(a.model, defaults));
  reference.build.dtype = std::string(name(fast.engine->manifest().dtype));  // the same weights and cache, bit for bit
  reference.build.kv_cache_dtype = std::string(name(fast.engine->manifest().kv_dtype));
  PINION_TRY(OpenModel slow, open_model(reference, defaults));
  std::vector<int32_t> ids;
  if (!a.input_ids.empty()) {
    PINION_TRY(ids, parse_ids(a.input_ids));
  } else {
    std::mt19937 random(7);
    for (int32_t i = 0; i < a.tokens; ++i) ids.push_back(static_cast<int32_t>(random() % fast.executor->vocab_size()));
  }
  const int64_t most = std::min<int64_t>(512, fast.executor->options().max_seq_len);
  if (std::ssize(ids) > most)
    return fail(Errc::invalid_argument, fmt::format("diff takes up to {} tokens", most), "--input_ids, --tokens");
  for (int32_t id : ids) {
    if (id >= fast.executor->vocab_size())
      return fail(Errc::invalid_argument, fmt::format("token {} is outside the vocabulary", id), "--input_ids");
  }
  const Graph& g = fast.engine->graph();
  const Values want = run_values(*slow.executor, slow.engine->graph(), ids), got = run_values(*fast.executor, g, ids);
  // Weights and cache are equal, so what differs is the order of sums: 1e-4 of a value's size is far above that in f32,
  // far below a wrong kernel. A cache in 16 bits rounds a last bit differently now and then.
  const double tolerance = a.tolerance > 0 ? a.tolerance : fast.engine->manifest().kv_dtype == DType::f32 ? 1e-4 : 2e-2;
  int compared = 0;
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const Node& n = g.nodes()[i];
    for (Value v : n.out) {
      const auto w = want.find(v.id);
      if (w == want.end() || w->second.size() != got.at(v.id).size()) continue;  // born in a fusion
      ++compared;
      const Divergence d = compare(w->second, got.at(v.id));
      if (d.rms <= tolerance * (d.scale + 1e-6) && std::isfinite(d.worst)) continue;
      const int64_t width = g.spec(v).width;
      return fail(
          Errc::internal,
          fmt::format("{} diverges at {}: row {}, column {} is {}, the reference has {}; rms error {:.3g} of {:.3g}",
                      to_text(n.op), n.scope, d.at / width, d.at % width, got.at(v.id)[d.at], w->second[d.at], d.rms,
                      d.scale),
          fast.engine->programs()[0].steps[i].kernel, "run with --force_kernel to see whether another kernel agrees");
    }
  }
  const Divergence d = compare(want.at(slow.engine->graph().logits.id), got.at(g.logits.id));
  fmt::print("{} values agree; logits: max difference {:.3g}, rms {:.3g} of {:.3g}\n", compared, d.worst, d.rms,
             d.scale);
  return {};
}

}  // namespace

Verb add_diff(CLI::App& app) {
  auto a = std::make_shared<Args>();
  add_model_options(app, a->model);
  app.add_option("--checkpoint_dir", a->against, "the checkpoint that an engine was built from");
  app.add_option("--input_ids", a->input_ids, "token ids, 1,2,3; random ones otherwise");
  app.add_option("--tokens", a->tokens, "how many random tokens")->check(CLI::Range(1, 512))->capture_default_str();
  app.add_option("--tolerance", a->tolerance, "rms difference allowed, relative to a value's rms")
      ->check(CLI::PositiveNumber);
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
