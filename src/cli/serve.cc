// pinion serve: a model behind the OpenAI API. SIGTERM and SIGINT drain: accepted requests are finished first.
#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <cctype>
#include <memory>
#include <thread>

#include "base/log.h"
#include "cli/sampling_options.h"
#include "cli/verbs.h"
#include "server/engine_service.h"
#include "server/server.h"

namespace pinion::cli {
namespace {

struct Args {
  ModelArgs model;
  ServerOptions server;
  int port = 8000;
  std::string tool_call_parser = "auto", reasoning_parser = "auto";
  std::string served_model_name, policy = "max_utilization";
  int32_t max_queue = 512, chunk_tokens = 512;
  bool no_prefix_reuse = false;
};

// One short and one long request: pages are touched and threads awake before the first client comes.
Status warm_up(EngineLoop& loop, int32_t max_seq_len) {
  for (int32_t n : {8, std::min(256, max_seq_len / 2)}) {
    Request request{.id = "warm-up", .prompt = std::vector<int32_t>(std::max(1, n), 0), .sampling = {}};
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = 4;
    request.cache_salt = "warm-up";
    PINION_OK([&]() -> Status {
      auto c = complete(loop, std::move(request));
      return c ? Status() : Status(c.error());
    }());
  }
  return {};
}

Status run(Args a) {
  // Blocked here, before any thread exists, and taken by one thread that waits for them.
  sigset_t stops;
  sigemptyset(&stops);
  sigaddset(&stops, SIGTERM);
  sigaddset(&stops, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stops, nullptr);
  signal(SIGPIPE, SIG_IGN);

  LoopOptions options;
  if (a.policy == "guaranteed_no_evict") options.policy = SchedulerPolicy::guaranteed_no_evict;
  PINION_TRY(OpenModel m, open_model(a.model, {.max_batch_size = 64, .max_num_tokens = 2048}));
  if (!m.tokenizer)
    return fail(Errc::invalid_argument, "the model has no tokenizer files", a.model.model,
                "pass their directory with --tokenizer DIR");
  const ExecutorOptions& limits = m.executor->options();
  options.max_batch_size = limits.max_batch_size;
  options.max_num_tokens = limits.max_num_tokens;
  options.max_seq_len = limits.max_seq_len;
  options.max_queue = a.max_queue;
  options.chunk_tokens = a.chunk_tokens;
  options.prefix_reuse = !a.no_prefix_reuse;
  EngineLoop loop(*m.executor, m.tokenizer.get(), options);
  EngineGenerator generator(loop);
  const auto tools = a.tool_call_parser == "auto" ? std::nullopt : parse_tool_format(a.tool_call_parser);
  const auto reasoning =
      a.reasoning_parser == "auto" ? std::nullopt : std::optional<bool>(a.reasoning_parser != "none");
  const ModelText text(*m.tokenizer, m.chat_template ? &*m.chat_template : nullptr, tools, reasoning);
  ModelService service{.generator = &generator,
                       .text = &text,
                       .name = a.served_model_name.empty() ? m.engine->manifest().model_name : a.served_model_name,
                       .max_seq_len = loop.options().max_seq_len,
                       .vocab_size = m.executor->vocab_size(),
                       .defaults = default_sampling(m.engine->dir(), false)};
  a.server.port = static_cast<uint16_t>(a.port);
  a.server.ready = false;
  PINION_TRY(auto server, Server::start(a.server, service));
  PINION_OK(warm_up(loop, loop.options().max_seq_len));
  server->set_ready(true);
  const MemoryPlan& memory = m.executor->memory();
  spdlog::info("serving {} on http://{}:{} (loaded in {:.2f} s; weights {} MiB, KV {} MiB, arena {} MiB)", service.name,
               a.server.host, server->port(), m.open_seconds, memory.weights >> 20, memory.kv >> 20,
               (memory.arena + memory.workspace) >> 20);
  int got = 0;
  sigwait(&stops, &got);
  spdlog::info("draining: no new requests, {} are finished first; a second signal stops at once",
               loop.stats().running + loop.stats().waiting);
  std::thread impatient([&stops] {
    int again = 0;
    sigwait(&stops, &again);
    if (again != SIGTERM && again != SIGINT) return;
    std::_Exit(1);
  });
  impatient.detach();
  server->drain();
  loop.drain();
  // Nothing runs any more: every block must be free. A leak that nobody noticed while serving ends here with status 1.
  const std::string wrong = loop.integrity();
  if (!wrong.empty() || loop.stats().blocks_used != 0) {
    return fail(Errc::internal, "the KV pool is not whole after the last request: " + wrong, "pinion serve",
                "this is a bug in Pinion");
  }
  return {};
}

}  // namespace

Verb add_serve(CLI::App& app) {
  auto a = std::make_shared<Args>();
  add_model_options(app, a->model);
  app.add_option("--host", a->server.host, "address to listen on")->capture_default_str();
  app.add_option("--port", a->port, "0: any free one")->check(CLI::Range(0, 65535))->capture_default_str();
  app.add_option("--http_threads", a->server.threads, "threads that read, tokenise and write")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--served_model_name", a->served_model_name, "what clients write into \"model\"");
  app.add_option("--batch_scheduler_policy", a->policy, "max_utilization or guaranteed_no_evict")
      ->check(CLI::IsMember({"max_utilization", "guaranteed_no_evict"}))
      ->capture_default_str();
  app.add_option("--max_queue", a->max_queue, "waiting requests; one more is answered 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--chunk_tokens", a->chunk_tokens, "largest piece of a prompt in one step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_flag("--no_prefix_reuse", a->no_prefix_reuse,
               "do not share the cache between prompts with a common beginning");
  app.add_option("--api_key", a->server.api_keys, "a key that clients must send (repeatable)");
  app.add_option(
         "--tool_call_parser", a->tool_call_parser,
         "how the model writes tool calls: auto (as its chat template shows), none, hermes, llama3_json, mistral "
         "or deepseek_v3")
      ->check(CLI::IsMember({"auto", "none", "hermes", "llama3_json", "mistral", "deepseek_v3"}))
      ->capture_default_str();
  app.add_option("--reasoning_parser", a->reasoning_parser,
                 "split <think>…</think> off the answer: auto (as its chat template shows), none, deepseek_r1 or qwen3")
      ->check(CLI::IsMember({"auto", "none", "deepseek_r1", "qwen3"}))
      ->capture_default_str();
  app.add_option("--metrics_prefix", a->server.metrics_prefix, "of metric names; vllm: serves dashboards made for vLLM")
      ->check([](const std::string& text) {
        const bool legal =
            std::ranges::all_of(text, [](unsigned char c) { return std::isalpha(c) || c == '_' || c == ':'; });
        return legal ? std::string() : "letters, _ and : only";
      })
      ->capture_default_str();
  app.add_flag("--strict_fields", a->server.strict_fields, "refuse unknown request fields");
  app.add_flag("--strict_model_name", a->server.strict_model_name,
               "KServe: refuse model names other than the served one (any name means it otherwise)");
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
