#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <mutex>

namespace pinion {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

// vLLM's buckets, those between tokens extended downwards: a fast device stays below its first one.
const Buckets latency_buckets = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                 30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
const Buckets first_buckets = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                               1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
const Buckets token_buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
                               0.4,   0.5,    0.75,  1,    2.5,   5,    7.5,   10,  20,   40,  80};
const Buckets count_buckets = {1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                               2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};

}  // namespace

struct ServerMetrics::Impl {
  Impl(const std::string& model, std::string prefix) : prefix(std::move(prefix)), labels{{"model_name", model}} {}

  prometheus::Histogram& histogram(const std::string& name, const std::string& help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(prefix + name).Help(help).Register(registry).Add(labels, buckets);
  }
  prometheus::Counter& counter(const std::string& name, const std::string& help) {
    return prometheus::BuildCounter().Name(prefix + name).Help(help).Register(registry).Add(labels);
  }
  prometheus::Gauge& gauge(const std::string& name, const std::string& help) {
    return prometheus::BuildGauge().Name(prefix + name).Help(help).Register(registry).Add(labels);
  }

  const std::string prefix;
  const prometheus::Labels labels;
  prometheus::Registry registry;
  std::mutex scrape;

  prometheus::Family<prometheus::Counter>& http = prometheus::BuildCounter()
                                                      .Name(prefix + "http_requests_total")
                                                      .Help("HTTP requests answered, by route and status")
                                                      .Register(registry);
  prometheus::Family<prometheus::Counter>& success = prometheus::BuildCounter()
                                                         .Name(prefix + "request_success_total")
                                                         .Help("Sequences finished, by reason")
                                                         .Register(registry);
  prometheus::Histogram& e2e =
      histogram("e2e_request_latency_seconds", "From a request's arrival to its end", latency_buckets);
  prometheus::Histogram& first =
      histogram("time_to_first_token_seconds", "From arrival to the first token", first_buckets);
  prometheus::Histogram& gap =
      histogram("inter_token_latency_seconds", "Between two pieces of a sequence's output", token_buckets);
  prometheus::Histogram& per_token =
      histogram("request_time_per_output_token_seconds", "A request's decode time per token", token_buckets);
  prometheus::Histogram& prompt = histogram("request_prompt_tokens", "Prompt tokens of a request", count_buckets);
  prometheus::Histogram& output = histogram("request_generation_tokens", "Output tokens of a request", count_buckets);
  prometheus::Counter& gone = counter("client_disconnects_total", "Requests cancelled because the client went away");
  prometheus::Counter& prompt_tokens = counter("prompt_tokens_total", "Prompt tokens of finished requests");
  prometheus::Counter& cached_tokens = counter("prompt_tokens_cached_total", "Prompt tokens found in the prefix cache");
  prometheus::Counter& output_tokens = counter("generation_tokens_total", "Tokens generated");
  prometheus::Counter& steps = counter("engine_steps_total", "Forward passes");
  prometheus::Counter& preemptions = counter("num_preemptions_total", "Sequences evicted to make room");
  prometheus::Counter& cancelled = counter("requests_cancelled_total", "Sequences cancelled");
  prometheus::Counter& failed = counter("requests_failed_total", "Sequences ended by an error");
  prometheus::Counter& rejected = counter("requests_rejected_total", "Sequences refused at the door");
  prometheus::Counter& busy = counter("engine_busy_seconds_total", "Time in forward passes");
  prometheus::Counter& queue_time = counter("request_queue_seconds_total", "Time that sequences waited");
  prometheus::Counter& prefill_time = counter("request_prefill_seconds_total", "Time that sequences were in prefill");
  prometheus::Counter& decode_time = counter("request_decode_seconds_total", "Time that sequences were in decode");
  prometheus::Gauge& running = gauge("num_requests_running", "Sequences in the batch");
  prometheus::Gauge& waiting = gauge("num_requests_waiting", "Sequences in the queue");
  prometheus::Gauge& kv_usage = gauge("kv_cache_usage_perc", "KV blocks held by live sequences, 0 to 1");
  prometheus::Gauge& kv_total = gauge("kv_blocks_total", "KV blocks there are");
  prometheus::Gauge& kv_cached = gauge("kv_blocks_cached", "KV blocks held only for reuse");
  prometheus::Gauge& ready_gauge = gauge("ready", "1 while the server takes requests");
  prometheus::Gauge& connections_gauge = gauge("http_connections", "Open connections");
};

ServerMetrics::ServerMetrics(const std::string& model, const std::string& prefix)
    : impl_(std::make_unique<Impl>(model, prefix)) {}
ServerMetrics::~ServerMetrics() = default;

void ServerMetrics::http_request(std::string_view route, int status) {
  impl_->http.Add({{"route", std::string(route)}, {"status", std::to_string(status)}}).Increment();
}
void ServerMetrics::first_token(double seconds) {
  impl_->first.Observe(seconds);
}
void ServerMetrics::between_tokens(double seconds) {
  impl_->gap.Observe(seconds);
}
void ServerMetrics::disconnected() {
  impl_->gone.Increment();
}

void ServerMetrics::finished(const ResponseWriter& writer, double seconds, double decode_seconds) {
  for (size_t s = 0; s < writer.sequences(); ++s) {
    auto labels = impl_->labels;
    labels["finished_reason"] = std::string(writer.finish(s));
    impl_->success.Add(labels).Increment();
  }
  const auto totals = writer.totals();
  impl_->e2e.Observe(seconds);
  impl_->prompt.Observe(static_cast<double>(totals.prompt_tokens));
  impl_->output.Observe(static_cast<double>(totals.output_tokens));
  const auto decoded = totals.output_tokens - static_cast<int64_t>(writer.sequences());
  if (decoded > 0) {  // sequences of one request decode side by side
    impl_->per_token.Observe(decode_seconds * static_cast<double>(writer.sequences()) / static_cast<double>(decoded));
  }
}

std::string ServerMetrics::text(const LoopStats& stats, bool ready, size_t connections) {
  Impl& m = *impl_;
  const std::lock_guard lock(m.scrape);
  // The engine counts for itself: each scrape adds what is new.
  const auto follow = [](prometheus::Counter& counter, double now) {
    counter.Increment(std::max(0.0, now - counter.Value()));
  };
  follow(m.prompt_tokens, static_cast<double>(stats.prompt_tokens));
  follow(m.cached_tokens, static_cast<double>(stats.cached_tokens));
  follow(m.output_tokens, static_cast<double>(stats.output_tokens));
  follow(m.steps, static_cast<double>(stats.steps));
  follow(m.preemptions, static_cast<double>(stats.preemptions));
  follow(m.cancelled, static_cast<double>(stats.requests_cancelled));
  follow(m.failed, static_cast<double>(stats.requests_failed));
  follow(m.rejected, static_cast<double>(stats.requests_rejected));
  follow(m.busy, stats.busy_seconds);
  follow(m.queue_time, stats.queue_seconds);
  follow(m.prefill_time, stats.prefill_seconds);
  follow(m.decode_time, stats.decode_seconds);
  m.running.Set(stats.running);
  m.waiting.Set(stats.waiting);
  m.kv_usage.Set(stats.blocks_total > 0 ? static_cast<double>(stats.blocks_used) / stats.blocks_total : 0);
  m.kv_total.Set(stats.blocks_total);
  m.kv_cached.Set(stats.blocks_cached);
  m.ready_gauge.Set(ready ? 1 : 0);
  m.connections_gauge.Set(static_cast<double>(connections));
  return prometheus::TextSerializer().Serialize(m.registry.Collect());
}

}  // namespace pinion
