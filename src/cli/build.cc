// pinion build: a checkpoint into an engine directory.
#include <fmt/format.h>

#include <array>
#include <chrono>
#include <memory>

#include "base/log.h"
#include "cli/measure_loss.h"
#include "cli/model.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace {

// Of trtllm-build: they choose among its kernels. Here each is chosen for the device, by what it takes.
constexpr std::array kKernelFlags{"--gemm_plugin",  "--gpt_attention_plugin", "--moe_plugin",
                                  "--context_fmha", "--remove_input_padding", "--use_paged_context_fmha"};

struct Args {
  std::array<std::string, kKernelFlags.size()> kernel_choices;
  int tp_size = 1, pp_size = 1;
  bool strongly_typed = false;
  std::string checkpoint_dir, output_dir, kv_cache_type = "paged";
  BuildArgs build;
  int64_t max_batch_size = 0, max_input_len = 0, max_seq_len = 0, max_num_tokens = 0, workers = 0;
  double max_kl = 0;
  bool explain = false, time = false, json = false;
};

Status run(const Args& a) {
  const auto start = std::chrono::steady_clock::now();
  if (a.kv_cache_type != "paged")
    return fail(Errc::unsupported, "the KV cache type \"" + a.kv_cache_type + "\" is not supported", "--kv_cache_type",
                "use paged");
  for (const auto& [flag, value] : {std::pair{"--max_batch_size", a.max_batch_size},
                                    {"--max_input_len", a.max_input_len},
                                    {"--max_seq_len", a.max_seq_len},
                                    {"--max_num_tokens", a.max_num_tokens}}) {
    if (value) {
      spdlog::warn("{} {} changes nothing in the engine: limits are given when it is run (pinion serve {} {})", flag,
                   value, flag == std::string_view("--max_input_len") ? "--max_seq_len" : flag, value);
    }
  }
  for (size_t i = 0; i < kKernelFlags.size(); ++i) {
    if (!a.kernel_choices[i].empty()) {
      spdlog::warn("{} {} changes nothing: kernels are chosen for the device", kKernelFlags[i], a.kernel_choices[i]);
    }
  }
  if (a.strongly_typed) spdlog::warn("--strongly_typed changes nothing: every value has the dtype that the graph says");
  for (const auto& [flag, ranks] : {std::pair{"--tp_size", a.tp_size}, {"--pp_size", a.pp_size}}) {
    if (ranks != 1) {
      return fail(Errc::unsupported, fmt::format("{} ranks are not supported: one rank runs here", ranks), flag,
                  "leave it out; a checkpoint that convert divided is read as the whole one");
    }
  }
  if (a.workers) spdlog::warn("--workers {} changes nothing: a build uses all CPUs, or --threads of them", a.workers);
  const Backend* backend = nullptr;
  PINION_TRY(auto device, open_device(a.build, backend));
  PINION_TRY(BuildOptions options, build_options(a.build));
  PINION_TRY(Checkpoint checkpoint, open_checkpoint(a.checkpoint_dir, a.build.load_format));
  if (a.max_kl > 0) PINION_OK(check_loss(checkpoint.dir(), a.max_kl));
  PINION_TRY(BuildReport report, build_engine(checkpoint, *backend, *device, options, a.output_dir));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (a.json) {
    Json stages = Json::object();
    for (const auto& s : report.stages) stages[s.name] = s.seconds;
    Json weights = Json::object();
    for (const auto& [kind, w] : report.weights) weights[kind] = {{"count", w.count}, {"bytes", w.bytes}};
    fmt::print("{}\n", Json{{"seconds", seconds},
                            {"stages", stages},
                            {"write_wait_seconds", report.write_wait_seconds},
                            {"weight_bytes", report.weight_bytes},
                            {"weights", weights},
                            {"tuned", report.tuned},
                            {"from_tuning_cache", report.from_cache},
                            {"output_dir", a.output_dir}}
                           .dump());
    return {};
  }
  if (a.explain) fmt::print("{}", report.explanation);
  if (a.time) {
    for (const auto& s : report.stages) fmt::print("  {:<16} {:8.3f} s\n", s.name, s.seconds);
  }
  if (report.weights.size() > 2) {  // more than matrices of one type, and float32 vectors
    for (const auto& [kind, w] : report.weights)
      fmt::print("  {:>6} weights {:<24} {:10.1f} MiB\n", w.count, kind, static_cast<double>(w.bytes) / (1 << 20));
  }
  fmt::print("built {} in {:.2f} s: {:.1f} MiB of weights, {} kernels timed, {} from the tuning cache\n", a.output_dir,
             seconds, static_cast<double>(report.weight_bytes) / (1 << 20), report.tuned, report.from_cache);
  return {};
}

}  // namespace

Verb add_build(CLI::App& app) {
  auto a = std::make_shared<Args>();
  app.add_option("--checkpoint_dir,--model_dir", a->checkpoint_dir,
                 "a Hugging Face directory, or org/name in the local cache")
      ->required();
  app.add_option("--output_dir", a->output_dir, "the engine directory to write")->required();
  add_build_options(app, a->build);
  app.add_option("--kv_cache_type", a->kv_cache_type, "paged")->capture_default_str();
  // Limits are numbers of the run time here: a build does not depend on them. They are accepted, so that scripts of
  // other compilers run, and said to have no effect.
  for (auto& [flag, value] : {std::pair{"--max_batch_size", &a->max_batch_size},
                              {"--max_input_len", &a->max_input_len},
                              {"--max_seq_len", &a->max_seq_len},
                              {"--max_num_tokens", &a->max_num_tokens},
                              {"--workers", &a->workers}}) {
    app.add_option(flag, *value, "accepted; limits are set when the engine is run")->check(CLI::PositiveNumber);
  }
  for (size_t i = 0; i < kKernelFlags.size(); ++i) {
    app.add_option(kKernelFlags[i], a->kernel_choices[i], "accepted; kernels are chosen for the device");
  }
  app.add_flag("--strongly_typed", a->strongly_typed, "accepted; the graph's dtypes are always kept");
  app.add_option("--tp_size", a->tp_size, "ranks; only 1")->check(CLI::Range(1, 1024));
  app.add_option("--pp_size", a->pp_size, "ranks; only 1")->check(CLI::Range(1, 1024));
  app.add_option("--max_kl", a->max_kl, "refuse a quantised checkpoint whose measured KL divergence is larger")
      ->check(CLI::PositiveNumber);
  app.add_flag("--explain", a->explain, "print every kernel considered, with its reason");
  app.add_flag("--time", a->time, "print the time of every stage");
  app.add_flag(
      "--json", a->json,
      "print one JSON object: seconds, stages, write_wait_seconds, weight_bytes, weights, tuned, from_tuning_cache");
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
