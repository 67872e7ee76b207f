// Routes one HTTP request: an answer at once, or a generation for the connection to run.
#pragma once

#include <atomic>
#include <memory>
#include <string_view>
#include <variant>
#include <vector>

#include "server/kserve_writer.h"
#include "server/metrics.h"
#include "server/openai_request.h"
#include "server/response_writer.h"
#include "server/server.h"

namespace pinion {

struct ServerState {  // shared by all connections
  const ServerOptions options;
  ModelService& service;
  ServerMetrics metrics;
  KserveStats kserve;
  std::atomic<bool> ready, draining{false};
  std::atomic<size_t> connections{0}, in_flight{0};

  ServerState(ServerOptions o, ModelService& s)
      : options(std::move(o)), service(s), metrics(s.name, options.metrics_prefix), ready(options.ready) {}
};

struct GenerationReply {
  std::vector<Request> requests;
  std::unique_ptr<ResponseWriter> writer;
};

struct Reply {
  std::string_view route = "other";  // for metrics
  std::variant<HttpResponse, GenerationReply> content;
};

Reply handle(ServerState& state, const HttpRequest& request);

bool authorized(const ServerState& state, const HttpRequest& request);
HttpResponse key_error();
std::string random_id();  // 32 hexadecimal digits

}  // namespace pinion
