// pinion serve: a model, or a model repository, behind the OpenAI API and the KServe protocol. SIGTERM and SIGINT
// drain: accepted requests are finished first. SIGHUP loads again what is served.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <memory>
#include <thread>

#include "base/log.h"
#include "cli/config_file.h"
#include "cli/model_repository.h"
#include "cli/verbs.h"
#include "server/server.h"

namespace pinion::cli {
namespace {

struct Args {
  ServeArgs serve;
  ServerOptions server;
  CLI::App* app = nullptr;
  int port = 8000, metrics_port = -1, rate_limit = 0, request_timeout = 0, drain_timeout = 0;
  std::string served_model_name, model_repository, config;
  std::vector<std::string> api_keys;
  // Of commands written for trtllm-serve and tritonserver.
  std::string engine_dir, backend;
  int tp_size = 1, pp_size = 1, ep_size = 1, grpc_port = -1, log_verbose = 0;
  bool no_auto_complete = false;
};

// Flags of other servers' commands: those that mean something here do it, those that cannot be honoured say so.
Status settle_foreign_flags(Args& a) {
  if (!a.engine_dir.empty()) {
    if (!a.serve.model.model.empty()) {
      return fail(Errc::invalid_argument, "the model is given twice", "--engine_dir",
                  "leave MODEL or --engine_dir out");
    }
    a.serve.model.model = a.engine_dir;
  }
  if (a.tp_size * a.pp_size * a.ep_size != 1) {
    return fail(Errc::unsupported, "this version serves with one rank", "--tp_size, --pp_size, --ep_size",
                "leave them out");
  }
  if (a.log_verbose > 0) init_log("debug");
  return {};
}

// A connection is a descriptor: the soft limit of 1024 that most systems start with is too few.
void raise_descriptor_limit(size_t connections) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t before = limit.rlim_cur;
  limit.rlim_cur = limit.rlim_max;
  if (before != limit.rlim_max && ::setrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = before;
  if (limit.rlim_cur < connections + 64) {
    spdlog::warn("only {} file descriptors may be open: fewer than {} connections fit (see ulimit -n)", limit.rlim_cur,
                 connections);
  }
}

Result<double> number_field(const OrderedJson& object, const char* name) {
  if (!object.contains(name)) return 0.0;
  if (!object[name].is_number() || object[name].get<double>() < 0) {
    return fail(Errc::invalid_argument, "expected a number from 0 on", fmt::format("--config: api_keys: {}", name), "");
  }
  return object[name].get<double>();
}

// api_keys: in a configuration, each a string or {key, name, requests_per_minute, tokens_per_minute, priority}.
Status read_api_keys(const OrderedJson& keys, std::vector<ApiKey>& out) {
  const auto bad = [](std::string_view what) { return fail(Errc::invalid_argument, what, "--config: api_keys", ""); };
  if (!keys.is_array()) return bad("expected a list");
  for (const OrderedJson& k : keys) {
    if (k.is_string()) {
      out.push_back({.key = k.get<std::string>()});
      continue;
    }
    if (!k.is_object() || !k.contains("key") || !k["key"].is_string()) return bad("an entry has no \"key\"");
    for (const auto& [name, value] : k.items()) {
      if (name != "key" && name != "name" && name != "requests_per_minute" && name != "tokens_per_minute" &&
          name != "priority") {
        return bad("unknown setting " + name);
      }
    }
    ApiKey key{.key = k["key"].get<std::string>()};
    if (k.contains("name") && k["name"].is_string()) key.name = k["name"].get<std::string>();
    PINION_TRY(key.requests_per_minute, number_field(k, "requests_per_minute"));
    PINION_TRY(key.tokens_per_minute, number_field(k, "tokens_per_minute"));
    if (k.contains("priority")) {
      if (!k["priority"].is_number_integer()) return bad("priority is no whole number");
      key.priority = k["priority"].get<int32_t>();
    }
    out.push_back(std::move(key));
  }
  return {};
}

// The configuration file, then what the flags mean for the server.
Status settle(Args& a) {
  if (!a.config.empty()) {
    OrderedJson kept = OrderedJson::object();
    PINION_TRY(const OrderedJson config, read_config_file(a.config));
    PINION_TRY(const ConfigFlags flags, config_flags(config, {"api_keys"}, kept));
    PINION_OK(apply_flags(*a.app, flags, a.config));
    if (kept.contains("api_keys")) PINION_OK(read_api_keys(kept["api_keys"], a.server.api_keys));
  }
  PINION_OK(settle_foreign_flags(a));
  for (const std::string& key : a.api_keys) a.server.api_keys.push_back({.key = key});
  for (size_t i = 0; i < a.server.api_keys.size(); ++i) {
    ApiKey& key = a.server.api_keys[i];
    if (key.key.empty()) return fail(Errc::invalid_argument, "an API key is empty", "--api_key", "give it characters");
    if (key.name.empty()) key.name = fmt::format("key{}", i + 1);
    if (key.requests_per_minute == 0) key.requests_per_minute = a.rate_limit;
  }
  if (a.server.tls_certificate.empty() != a.server.tls_key.empty()) {  // said here, before a model is loaded
    return fail(Errc::invalid_argument, "TLS needs a certificate and its key", "--tls_certificate, --tls_key",
                "give both");
  }
  if (a.rate_limit > 0 && a.server.api_keys.empty()) {
    return fail(Errc::invalid_argument, "limits are per API key", "--rate_limit", "add --api_key");
  }
  if (a.serve.model.model.empty() == a.model_repository.empty()) {
    return fail(Errc::invalid_argument, "give either MODEL or --model_repository", "pinion serve",
                "see pinion serve --help");
  }
  a.server.port = static_cast<uint16_t>(a.port);
  if (a.metrics_port >= 0) a.server.metrics_port = static_cast<uint16_t>(a.metrics_port);
  if (a.metrics_port < 0 && !a.model_repository.empty()) a.server.metrics_port = 8002;  // as Triton's
  if (a.grpc_port >= 0) a.server.grpc_port = static_cast<uint16_t>(a.grpc_port);
  if (a.grpc_port < 0 && !a.model_repository.empty() && Server::has_grpc()) a.server.grpc_port = 8001;  // too
  a.server.request_timeout = std::chrono::seconds(a.request_timeout);
  a.server.drain_timeout = std::chrono::seconds(a.drain_timeout);
  a.server.ready = false;
  return {};
}

// The MODEL of the command line, which SIGHUP loads again.
class OneModel final : public ModelSource {
 public:
  // `first`: what the first load() gives.
  OneModel(ServeArgs args, std::string name, std::shared_ptr<ServedEngine> first)
      : args_(std::move(args)), name_(std::move(name)), first_(std::move(first)), current_(first_) {}

  std::vector<std::string> names() override { return {name_}; }
  Result<LoadedModel> load(const std::string& name) override {
    std::shared_ptr<ServedEngine> engine = std::exchange(first_, nullptr);
    if (!engine) {
      PINION_TRY(engine, ServedEngine::load(args_));
      PINION_OK(engine->warm_up());
      current_ = engine;
      spdlog::info("loaded {} again in {:.2f} s", args_.model.model, engine->model().open_seconds);
    }
    const ModelService service = engine->service(name);
    ServedEngine* const borrowed = engine.get();
    // Whoever lets go last sees that every block came back.
    std::shared_ptr<void> owner(borrowed, [engine = std::move(engine)](void*) mutable {
      if (auto whole = engine->drain(); !whole) spdlog::error("{}", whole.error().message);
      engine.reset();  // now, not when the last weak reference to the owner goes
    });
    return LoadedModel{.service = service, .version = "1", .owner = std::move(owner)};
  }
  bool by_clients() const override { return false; }
  std::shared_ptr<ServedEngine> current() const { return current_.lock(); }

 private:
  const ServeArgs args_;
  const std::string name_;
  std::shared_ptr<ServedEngine> first_;
  std::weak_ptr<ServedEngine> current_;
};

// Waits for SIGTERM or SIGINT, then finishes what was accepted; a second one ends the process. SIGHUP loads again.
void serve_until_told(Server& server, const sigset_t& signals) {
  const bool terminal = ::isatty(STDIN_FILENO) == 1;
  int got = 0;
  std::thread reload;
  for (;;) {
    sigwait(&signals, &got);
    if (got != SIGHUP || (terminal && ::isatty(STDIN_FILENO) == 0)) break;  // of a terminal that was closed: the end
    spdlog::info("SIGHUP: loading again; what serves goes on until then");
    if (reload.joinable()) reload.join();
    reload = std::thread([&server] { server.load_models(); });
  }
  spdlog::info("draining: no new requests, those that were accepted are finished first; a second signal stops at once");
  std::thread impatient([signals] {
    int again = SIGHUP;
    while (again == SIGHUP) sigwait(&signals, &again);
    if (again != SIGTERM && again != SIGINT) return;
    std::_Exit(1);
  });
  impatient.detach();
  server.drain();
  if (reload.joinable()) reload.join();
}

void say_where(const Args& a, const Server& server, const std::string& what) {
  spdlog::info("serving {} on {}://{}:{}", what, a.server.tls_key.empty() ? "http" : "https", a.server.host,
               server.port());
  if (server.metrics_port() != 0) {
    spdlog::info("metrics on http://{}:{}/metrics", a.server.host, server.metrics_port());
  }
  if (server.grpc_port() != 0) spdlog::info("gRPC on {}:{}", a.server.host, server.grpc_port());
}

Status serve_repository(const Args& a, const sigset_t& signals) {
  ModelRepository repository(a.model_repository, a.serve);
  if (repository.names().empty()) {
    return fail(Errc::not_found, "no model has a config.pbtxt", a.model_repository,
                "a repository is <directory>/<model>/config.pbtxt with <model>/1/; see pinion triton-repo");
  }
  PINION_TRY(auto server, Server::start(a.server, repository));
  server->load_models();
  server->set_ready(true);
  say_where(a, *server, "the models of " + a.model_repository);
  serve_until_told(*server, signals);
  for (const auto& engine : repository.engines()) PINION_OK(engine->drain());
  return {};
}

Status run(Args& a) {
  // Blocked here, before any thread exists, and taken by one thread that waits for them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  PINION_OK(settle(a));
  raise_descriptor_limit(a.server.max_connections);
  if (!a.model_repository.empty()) return serve_repository(a, signals);

  PINION_TRY(std::shared_ptr<ServedEngine> engine, ServedEngine::load(a.serve));
  const std::string name = engine->service(a.served_model_name).name;
  OneModel source(a.serve, name, engine);
  PINION_TRY(auto server, Server::start(a.server, source));
  PINION_OK(engine->warm_up());
  server->load_models();
  server->set_ready(true);
  const OpenModel& m = engine->model();
  const MemoryPlan& memory = m.executor->memory();
  spdlog::info("loaded in {:.2f} s; weights {} MiB, KV {} MiB, arena {} MiB, host tier {} MiB", m.open_seconds,
               memory.weights >> 20, memory.kv >> 20, (memory.arena + memory.workspace) >> 20, memory.host >> 20);
  engine.reset();  // the server's now, which may replace it
  say_where(a, *server, name);
  serve_until_told(*server, signals);
  // Nothing runs any more: every block must be free. A leak that nobody noticed while serving ends here with status 1.
  engine = source.current();
  return engine ? engine->drain() : Status();
}

}  // namespace

Verb add_serve(CLI::App& app) {
  auto a = std::make_shared<Args>();
  a->app = &app;
  add_model_options(app, a->serve.model);
  app.get_option("model")->required(false);
  app.add_option("--model_repository,--model_repo", a->model_repository,
                 "serve a Triton model repository in place of MODEL (then also gRPC on 8001 and metrics on 8002)");
  app.add_option("--engine_dir", a->engine_dir, "the same as MODEL");
  app.add_option("--backend", a->backend, "as trtllm-serve has it: every choice is this one engine")
      ->check(CLI::IsMember({"pytorch", "tensorrt", "trt", "_autodeploy"}));
  app.add_option("--tp_size", a->tp_size, "ranks; only 1")->check(CLI::Range(1, 1024));
  app.add_option("--pp_size", a->pp_size, "ranks; only 1")->check(CLI::Range(1, 1024));
  app.add_option("--ep_size", a->ep_size, "ranks; only 1")->check(CLI::Range(1, 1024));
  app.add_option("--grpc_port", a->grpc_port,
                 "one more port, with the KServe protocol over gRPC (Triton's is 8001); 0: any free one")
      ->check(CLI::Range(0, 65535));
  app.add_option("--log_verbose", a->log_verbose, "above 0: --log_level debug");
  app.add_flag("--disable_auto_complete_config", a->no_auto_complete,
               "tritonserver's: a config.pbtxt is never completed here");
  app.add_option("--config", a->config,
                 "YAML or JSON file with any of these flags, or TensorRT-LLM's executor_config; flags on the command "
                 "line win");
  app.add_option("--host", a->server.host, "address to listen on")->capture_default_str();
  app.add_option("--port,--http_port", a->port, "0: any free one")->check(CLI::Range(0, 65535))->capture_default_str();
  app.add_option("--metrics_port", a->metrics_port,
                 "one more port, with /metrics alone (Triton's is 8002); 0: any free one")
      ->check(CLI::Range(0, 65535));
  app.add_option("--http_threads", a->server.threads, "threads that read, tokenise and write")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--served_model_name", a->served_model_name, "what clients write into \"model\"");
  app.add_option("--batch_scheduler_policy", a->serve.policy, "max_utilization or guaranteed_no_evict")
      ->check(CLI::IsMember({"max_utilization", "guaranteed_no_evict"}))
      ->capture_default_str();
  app.add_option("--max_queue", a->serve.max_queue, "requests beyond a full batch; one more is answered 429")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--chunk_tokens", a->serve.chunk_tokens, "largest piece of a prompt in one step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_flag("--no_prefix_reuse", a->serve.no_prefix_reuse,
               "do not share the cache between prompts with a common beginning");
  add_host_tier_option(app, a->serve.model.limits);
  app.add_option("--api_key", a->api_keys, "a key that clients must send (repeatable)");
  app.add_option("--rate_limit", a->rate_limit, "requests that generate, a minute and API key; 0: no limit")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--tls_certificate,--ssl_certfile", a->server.tls_certificate, "PEM file: serve HTTPS");
  app.add_option("--tls_key,--ssl_keyfile", a->server.tls_key, "PEM file with the certificate's key");
  app.add_option("--access_log", a->server.access_log,
                 "a JSON line for every request, to this file (-: standard error)");
  app.add_option("--otlp_traces_endpoint", a->server.otlp_traces_endpoint,
                 "send OpenTelemetry spans there, as OTLP over HTTP: http://collector:4318/v1/traces");
  app.add_option("--request_timeout", a->request_timeout, "seconds that an answer may take; 0: no limit")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--drain_timeout", a->drain_timeout, "seconds that SIGTERM leaves accepted requests; 0: no limit")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--max_connections", a->server.max_connections, "open connections; one more is answered 503")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--max_body_bytes", a->server.max_body_bytes, "bytes of a request's body; more is answered 413")
      ->check(CLI::Range(size_t{1024}, size_t{1} << 30))
      ->capture_default_str();
  app.add_option("--cors_origin", a->server.cors_origin, "Access-Control-Allow-Origin of every answer");
  app.add_option(
         "--tool_call_parser", a->serve.tool_call_parser,
         "how the model writes tool calls: auto (as its chat template shows), none, hermes, llama3_json, mistral "
         "or deepseek_v3")
      ->check(CLI::IsMember({"auto", "none", "hermes", "llama3_json", "mistral", "deepseek_v3"}))
      ->capture_default_str();
  app.add_option("--reasoning_parser", a->serve.reasoning_parser,
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
