// pinion bench: latency (one batch, step by step, against the machine's ceilings), throughput (the engine loop under
// load), serve (a running server under load) and the ceilings alone.
#include "cli/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "cli/sampling_options.h"
#include "cli/verbs.h"

namespace pinion::cli {

std::vector<int32_t> random_tokens(int32_t count, int32_t vocab, uint64_t seed) {
  std::vector<int32_t> out(count);
  uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
  for (int32_t& t : out) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    t = static_cast<int32_t>((x >> 33) % static_cast<uint64_t>(vocab));
  }
  return out;
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const auto rank = static_cast<int64_t>(std::ceil(q * static_cast<double>(values.size())));
  return values[std::clamp<int64_t>(rank - 1, 0, std::ssize(values) - 1)];
}

StepCost step_cost(const Engine& engine, int64_t rows) {
  const Graph& g = engine.graph();
  StepCost cost;
  std::vector<double> read(engine.weights().size());  // the part of each that is read
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const Node& n = g.nodes()[i];
    if (std::holds_alternative<Embed>(n.op)) continue;
    double part = 1;
    if (const auto* m = std::get_if<MoeLinear>(&n.op)) {
      part = 1 - std::pow(1 - static_cast<double>(m->top_k) / static_cast<double>(m->experts), rows);
      cost.per_token.other += 2.0 * static_cast<double>(m->top_k * m->in) * static_cast<double>(m->out);
    }
    if (const auto* m = std::get_if<MlaAttention>(&n.op))  // kv_b, absorbed
      cost.per_token.other += 2.0 * static_cast<double>(m->heads * (m->nope + m->v)) * static_cast<double>(m->rank);
    for (int32_t id : engine.node_weights(i)) read[id] = part;
    if (const auto* l = std::get_if<Linear>(&n.op)) {
      const double flops = 2.0 * static_cast<double>(l->in) * static_cast<double>(l->out);
      const auto ids = engine.node_weights(i);
      const bool bf16 = !ids.empty() && engine.weights()[ids[0]].spec.dtype == DType::bf16;
      auto& sum = g.spec(n.in[0]).rows == Rows::outputs ? cost.per_output : cost.per_token;
      (bf16 ? sum.bf16 : sum.other) += flops;
    }
  }
  for (size_t i = 0; i < read.size(); ++i) {
    cost.weight_bytes += read[i] * static_cast<double>(engine.weights()[i].spec.bytes());
  }
  return cost;
}

double attention_flops(const Engine& engine, int64_t tokens) {
  double flops = 0;
  for (const Node& n : engine.graph().nodes()) {
    const auto* a = std::get_if<Attention>(&n.op);
    if (!a) continue;
    const int64_t window = a->window > 0 ? std::min<int64_t>(a->window, tokens) : tokens;
    const double pairs = static_cast<double>(window) * (static_cast<double>(window) + 1) / 2 +
                         static_cast<double>(tokens - window) * static_cast<double>(window);
    flops += 4 * pairs * static_cast<double>(a->heads * a->head_dim);
  }
  return flops;
}

double kv_bytes(const Engine& engine, int64_t context) {
  double bytes = 0;
  for (const KvLayer& l : engine.graph().kv_layers) {
    const int64_t seen = l.window > 0 ? std::min<int64_t>(context, l.window) : context;
    bytes += static_cast<double>(l.token_bytes(engine.manifest().kv_dtype) * seen);
  }
  return bytes;
}

namespace {

Status bench_ceilings(const BenchArgs& a) {
  PINION_TRY(const cpu::Ceilings c,
             cpu::measure_ceilings({.threads = a.model.build.threads, .isa = a.model.build.isa}));
  if (a.json) {
    fmt::print("{}\n", Json{{"read_gbps", c.read_gbps},
                            {"f32_gflops", c.f32_gflops},
                            {"matrix_gflops", c.matrix_gflops},
                            {"read_threads", c.read_threads}}
                           .dump());
  } else {
    fmt::print("read {:.1f} GB/s with {} threads, f32 {:.1f} GFLOP/s", c.read_gbps, c.read_threads, c.f32_gflops);
    if (c.matrix_gflops > 0) fmt::print(", on matrix units {:.1f} GFLOP/s", c.matrix_gflops);
    fmt::print("\n");
  }
  return {};
}

void add_shared(CLI::App& app, BenchArgs& a) {
  app.add_option("model", a.model.model, "an engine, a checkpoint, or org/name in the local Hugging Face cache");
  app.add_option("--config", a.config, "a config.json in place of MODEL, with --load_format dummy");
  app.add_option("--tokenizer", a.model.tokenizer, "directory of the tokenizer files, when not the model's");
  add_build_options(app, a.model.build);
  add_limit_options(app, a.model.limits);
  app.add_option("--input_len", a.input_len, "tokens of each prompt")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--output_len", a.output_len, "tokens generated for each")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--seed", a.seed, "of the prompts' random tokens")->capture_default_str();
}

Status choose_model(BenchArgs& a) {
  if (a.model.model.empty() == a.config.empty()) {
    return fail(Errc::invalid_argument, "give either MODEL or --config", "pinion bench");
  }
  if (a.model.model.empty()) {
    if (a.model.build.load_format != "dummy")
      return fail(Errc::invalid_argument, "a config alone has no weights", "--config", "add --load_format dummy");
    a.model.model = a.config;
  }
  return {};
}

}  // namespace

Verb add_bench(CLI::App& app) {
  app.require_subcommand(1);
  auto a = std::make_shared<BenchArgs>();
  CLI::App* latency =
      app.add_subcommand("latency", "one batch: time to first token, time per token, against the ceilings");
  add_shared(*latency, *a);
  latency->add_option("--batch_size", a->batch_size, "sequences that run together")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  latency->add_option("--iterations", a->iterations, "prefills timed; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  latency->add_flag("--json", a->json,
                    "print one JSON object: time_to_first_token_ms, prefill_tokens_per_second, decode_ms_per_token, "
                    "decode_floor_ms, ceilings, ratios …");

  CLI::App* throughput = app.add_subcommand("throughput", "many requests through the engine loop");
  add_shared(*throughput, *a);
  add_host_tier_option(*throughput, a->model.limits);
  throughput->add_option("--num_requests", a->num_requests, "requests in all")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  throughput->add_option("--concurrency", a->concurrency, "requests in flight at once")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  auto draws = std::make_shared<SamplingArgs>();
  add_draw_options(*throughput, *draws);
  throughput->add_flag(
      "--json", a->json,
      "print one JSON object: requests_per_second, output_tokens_per_second, ttft_p50_ms, ttft_p99_ms …");

  auto load = std::make_shared<ServeLoadArgs>();
  CLI::App* serve = app.add_subcommand("serve", "load on a running server: TTFT, TPOT, ITL, throughput, goodput, cost");
  add_bench_serve(*serve, *load);

  CLI::App* ceilings = app.add_subcommand("ceilings", "what this machine's memory and multiply-adds can do");
  ceilings->add_option("--threads", a->model.build.threads, "CPU threads; 0: all")->check(CLI::Range(0, 1024));
  ceilings->add_option("--isa", a->model.build.isa, "force the instruction set: amx, avx512, avx2 or scalar");
  ceilings->add_flag("--json", a->json, "print one JSON object: read_gbps, f32_gflops, matrix_gflops, read_threads");
  return [=]() -> Status {
    if (ceilings->parsed()) return bench_ceilings(*a);
    if (serve->parsed()) return bench_serve(*load);
    PINION_OK(choose_model(*a));
    a->sampling = resolve(*draws, {.temperature = 0});
    return latency->parsed() ? bench_latency(*a) : bench_throughput(*a);
  };
}

}  // namespace pinion::cli
