// OpenTelemetry: a span for every request, and for one that generates where its time went, sent to a collector as
// OTLP/HTTP in JSON (opentelemetry-proto 1.x). Serving never waits for the collector: spans go through a bounded queue
// to one thread; what does not fit, or cannot be delivered, is dropped and counted.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "server/access_log.h"

namespace pinion {

// A request's place in a distributed trace (W3C Trace Context). Empty ids: it has none.
struct TraceContext {
  std::string trace_id, span_id, parent_id;  // hexadecimal; parent_id is empty where the trace begins here
  std::string header;                        // the "traceparent" that the answer carries
  bool sampled = false;                      // whoever began the trace wants it recorded
};
// A valid "traceparent" (version 00) goes on under a span id of our own. Without one a trace begins here if `begin`.
TraceContext continue_trace(std::string_view traceparent, bool begin = false);

struct SpanExportOptions {
  std::string endpoint;                      // http://host:port[/path]; without a path: /v1/traces
  size_t max_queue = 4096;                   // requests
  size_t batch = 256;                        // requests of one message
  std::chrono::milliseconds interval{2000};  // between messages, unless a batch is full
  std::chrono::milliseconds timeout{2000};   // of connecting, of sending and of the answer
};

class SpanExporter {
 public:
  // Errors: the endpoint is no http:// URL. Whether a collector listens shows later: it may start after the server.
  static Result<std::unique_ptr<SpanExporter>> start(SpanExportOptions options);
  ~SpanExporter();  // tries once to deliver what waits

  // `record` is of a request that ends now. Thread-safe, does not block.
  void record(const TraceContext& trace, const AccessRecord& record);

  struct Counts {
    uint64_t sent = 0, dropped = 0;  // requests
  };
  Counts counts() const;

 private:
  struct Impl;
  explicit SpanExporter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pinion
