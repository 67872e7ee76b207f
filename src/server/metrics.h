// The Prometheus metrics of one server: what it counts itself, and the engine's counters as of each scrape. Names end
// as vLLM's do, so that its dashboards serve after a change of the prefix.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "server/response_writer.h"
#include "server/service.h"

namespace pinion {

class ServerMetrics {
 public:
  using Clock = std::chrono::steady_clock;
  ServerMetrics(const std::string& model, const std::string& prefix);
  ~ServerMetrics();

  void http_request(std::string_view route, int status);  // route: one of ours, never the client's text
  void first_token(double seconds);
  void between_tokens(double seconds);
  void finished(const ResponseWriter& writer, double seconds, double decode_seconds);
  void disconnected();
  std::string text(const LoopStats& stats, bool ready, size_t connections);  // Prometheus text format 0.0.4

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pinion
