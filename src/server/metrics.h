// The Prometheus metrics of a server: what it counts itself, and the engines' counters as of each scrape. Three sets of
// names for the same figures: the server's own (a prefix and vLLM's endings), vLLM's, and those of Triton with its
// TensorRT-LLM backend, so that dashboards made for either serve unchanged.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/response_writer.h"
#include "server/service.h"

namespace pinion {

// Where the time of one answered request went.
struct RequestFigures {
  double seconds = 0;                                                        // from its arrival to its end
  double decode_seconds = 0;                                                 // from its first token to its end
  double queue_seconds = 0, prefill_seconds = 0, engine_decode_seconds = 0;  // in the engine, summed over its sequences
};

// The reasons of Triton's nv_inference_request_failure.
enum class FailureReason : uint8_t { rejected, canceled, backend, other };

// One model's series: kept while the server lives, over reloads of the model. Thread-safe.
class ModelMetrics {
 public:
  virtual ~ModelMetrics() = default;
  virtual void first_token(double seconds) = 0;
  virtual void between_tokens(double seconds) = 0;
  virtual void finished(const ResponseWriter& writer, const RequestFigures& figures) = 0;
  virtual void failed(FailureReason reason) = 0;
  virtual void disconnected() = 0;
};

class ServerMetrics {
 public:
  using Clock = std::chrono::steady_clock;
  explicit ServerMetrics(const std::string& prefix);
  ~ServerMetrics();

  // The series of a model, made when first asked for.
  std::shared_ptr<ModelMetrics> model(const std::string& name, const std::string& version);
  void http_request(std::string_view route, int status);  // route: one of ours, never the client's text

  struct Snapshot {  // of one loaded model
    std::shared_ptr<ModelMetrics> metrics;
    LoopStats stats;
  };
  // Prometheus text format 0.0.4.
  std::string text(const std::vector<Snapshot>& models, bool ready, size_t connections);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pinion
