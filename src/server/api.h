// Routes one HTTP request: an answer at once, or a generation for the connection to run.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string_view>
#include <variant>
#include <vector>

#include "server/access_log.h"
#include "server/metrics.h"
#include "server/model_registry.h"
#include "server/openai_request.h"
#include "server/rate_limiter.h"
#include "server/response_writer.h"
#include "server/server.h"
#include "server/telemetry.h"
#include "server/tls.h"

namespace pinion {

struct ServerState {  // shared by all connections
  const ServerOptions options;
  ServerMetrics metrics;
  ModelRegistry models;
  RateLimiter limiter;
  std::unique_ptr<AccessLog> access_log;                     // null: none is written
  std::unique_ptr<SpanExporter> spans;                       // null: none are sent
  std::shared_ptr<TlsContext> tls;                           // null: plain HTTP
  std::atomic<bool> ready, draining{false}, expired{false};  // expired: the drain's time is over
  std::atomic<size_t> connections{0}, in_flight{0};

  ServerState(ServerOptions o, const ModelService& service) : ServerState(std::move(o), nullptr) {
    models.add({.service = service, .version = "1", .owner = nullptr});
  }
  ServerState(ServerOptions o, ModelSource* source)
      : options(std::move(o)),
        metrics(options.metrics_prefix),
        models(metrics, source),
        limiter(options.api_keys),
        ready(options.ready) {}
};

struct GenerationReply {
  ModelHandle model;  // kept while the writer and the engine's requests use it
  std::vector<Request> requests;
  std::unique_ptr<ResponseWriter> writer;
  int key = -1;  // whose allowance its tokens are taken from
};

using SlowReply = std::function<HttpResponse()>;  // takes seconds: not for a thread that serves connections

struct Reply {
  std::string_view route = "other";  // for metrics
  std::variant<HttpResponse, GenerationReply, SlowReply> content;
};

Reply handle(ServerState& state, const HttpRequest& request);
Reply handle_metrics(ServerState& state, const HttpRequest& request);  // of the port that has only the metrics

bool is_serving(const ServerState& state);  // ready, not draining, and no engine has failed
bool authorized(const ServerState& state, const HttpRequest& request);
// For requests that generate: takes one of the key's requests, or says when to come again. Sets reply's key and the
// priority of its requests.
std::optional<ApiError> over_limit(ServerState& state, const HttpRequest& request);
void bill(const ServerState& state, const HttpRequest& request, GenerationReply& reply);
HttpResponse key_error();
std::string random_id();  // 32 hexadecimal digits

}  // namespace pinion
