#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>

#include "server/triton_metrics.h"

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

const std::string vllm_prefix = "vllm:";
// What vLLM's dashboards read, behind the prefix.
constexpr std::array<std::string_view, 20> vllm_names = {
    "e2e_request_latency_seconds", "time_to_first_token_seconds",
    "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "request_queue_time_seconds",  "request_prefill_time_seconds",
    "request_decode_time_seconds", "request_inference_time_seconds",
    "request_prompt_tokens",       "request_generation_tokens",
    "request_success_total",       "prompt_tokens_total",
    "prompt_tokens_cached_total",  "prefix_cache_queries_total",
    "prefix_cache_hits_total",     "generation_tokens_total",
    "num_preemptions_total",       "num_requests_running",
    "num_requests_waiting",        "kv_cache_usage_perc"};

// An engine counts for itself, and from 0 again when its model is loaded again: the series goes on.
class Followed {
 public:
  explicit Followed(prometheus::Counter& counter) : counter_(counter) {}
  void update(double now) {
    counter_.Increment(now >= last_ ? now - last_ : now);
    last_ = now;
  }

 private:
  prometheus::Counter& counter_;
  double last_ = 0;
};

class ModelSeries final : public ModelMetrics {
 public:
  ModelSeries(prometheus::Registry& registry, const std::string& prefix, const std::string& model,
              const std::string& version)
      : registry_(registry), prefix_(prefix), labels_{{"model_name", model}}, triton_(registry, model, version) {
    for (const char* reason : {"stop", "length"}) success(reason);  // so that rate() sees the first one
  }

  void first_token(double seconds) override { first_.Observe(seconds); }
  void between_tokens(double seconds) override { gap_.Observe(seconds); }
  void failed(FailureReason reason) override { triton_.failed(reason); }
  void disconnected() override {
    gone_.Increment();
    triton_.failed(FailureReason::canceled);
  }

  void finished(const ResponseWriter& writer, const RequestFigures& figures) override {
    for (size_t s = 0; s < writer.sequences(); ++s) success(std::string(writer.finish(s))).Increment();
    const auto totals = writer.totals();
    e2e_.Observe(figures.seconds);
    queue_.Observe(figures.queue_seconds);
    prefill_.Observe(figures.prefill_seconds);
    decode_.Observe(figures.engine_decode_seconds);
    inference_.Observe(figures.prefill_seconds + figures.engine_decode_seconds);
    prompt_.Observe(static_cast<double>(totals.prompt_tokens));
    output_.Observe(static_cast<double>(totals.output_tokens));
    const auto sequences = static_cast<double>(writer.sequences());
    const auto decoded = static_cast<double>(totals.output_tokens) - sequences;
    if (decoded > 0) {  // sequences of one request decode side by side
      per_token_.Observe(figures.decode_seconds * sequences / decoded);
    }
    if (writer.failed() == nullptr) triton_.finished(writer.sequences(), figures);
  }

  void update(const LoopStats& stats) {
    prompt_tokens_.update(static_cast<double>(stats.prompt_tokens));
    cached_tokens_.update(static_cast<double>(stats.cached_tokens));
    prefix_queries_.update(static_cast<double>(stats.prompt_tokens));
    prefix_hits_.update(static_cast<double>(stats.cached_tokens));
    output_tokens_.update(static_cast<double>(stats.output_tokens));
    steps_.update(static_cast<double>(stats.steps));
    preemptions_.update(static_cast<double>(stats.preemptions));
    cancelled_.update(static_cast<double>(stats.requests_cancelled));
    failed_.update(static_cast<double>(stats.requests_failed));
    rejected_.update(static_cast<double>(stats.requests_rejected));
    busy_.update(stats.busy_seconds);
    queue_time_.update(stats.queue_seconds);
    prefill_time_.update(stats.prefill_seconds);
    decode_time_.update(stats.decode_seconds);
    running_.Set(stats.running);
    waiting_.Set(stats.waiting);
    kv_usage_.Set(stats.blocks_total > 0 ? static_cast<double>(stats.blocks_used) / stats.blocks_total : 0);
    kv_total_.Set(stats.blocks_total);
    kv_cached_.Set(stats.blocks_cached);
    host_total_.Set(stats.host_blocks_total);
    host_used_.Set(stats.host_blocks_used);
    host_hits_.update(static_cast<double>(stats.host_hit_blocks));
    to_host_.update(static_cast<double>(stats.bytes_to_host));
    from_host_.update(static_cast<double>(stats.bytes_from_host));
    triton_.update(stats);
  }

 private:
  prometheus::Histogram& histogram(const std::string& name, const std::string& help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(prefix_ + name).Help(help).Register(registry_).Add(labels_, buckets);
  }
  prometheus::Counter& counter(const std::string& name, const std::string& help) {
    return prometheus::BuildCounter().Name(prefix_ + name).Help(help).Register(registry_).Add(labels_);
  }
  Followed follow(const std::string& name, const std::string& help) { return Followed(counter(name, help)); }
  prometheus::Gauge& gauge(const std::string& name, const std::string& help) {
    return prometheus::BuildGauge().Name(prefix_ + name).Help(help).Register(registry_).Add(labels_);
  }
  prometheus::Counter& success(const std::string& reason) {
    auto labels = labels_;
    labels["finished_reason"] = reason;
    return success_.Add(labels);
  }

  prometheus::Registry& registry_;
  const std::string prefix_;
  const prometheus::Labels labels_;
  TritonModelMetrics triton_;
  prometheus::Family<prometheus::Counter>& success_ = prometheus::BuildCounter()
                                                          .Name(prefix_ + "request_success_total")
                                                          .Help("Sequences finished, by reason")
                                                          .Register(registry_);
  prometheus::Histogram& e2e_ =
      histogram("e2e_request_latency_seconds", "From a request's arrival to its end", latency_buckets);
  prometheus::Histogram& first_ =
      histogram("time_to_first_token_seconds", "From arrival to the first token", first_buckets);
  prometheus::Histogram& gap_ =
      histogram("inter_token_latency_seconds", "Between two pieces of a sequence's output", token_buckets);
  prometheus::Histogram& per_token_ =
      histogram("request_time_per_output_token_seconds", "A request's decode time per token", token_buckets);
  prometheus::Histogram& queue_ =
      histogram("request_queue_time_seconds", "A request's time in the queue", latency_buckets);
  prometheus::Histogram& prefill_ =
      histogram("request_prefill_time_seconds", "A request's time in prefill", first_buckets);
  prometheus::Histogram& decode_ =
      histogram("request_decode_time_seconds", "A request's time in decode", latency_buckets);
  prometheus::Histogram& inference_ =
      histogram("request_inference_time_seconds", "A request's time in prefill and decode", latency_buckets);
  prometheus::Histogram& prompt_ = histogram("request_prompt_tokens", "Prompt tokens of a request", count_buckets);
  prometheus::Histogram& output_ = histogram("request_generation_tokens", "Output tokens of a request", count_buckets);
  prometheus::Counter& gone_ = counter("client_disconnects_total", "Requests cancelled because the client went away");
  Followed prompt_tokens_ = follow("prompt_tokens_total", "Prompt tokens of admitted requests");
  Followed cached_tokens_ = follow("prompt_tokens_cached_total", "Prompt tokens found in the prefix cache");
  Followed prefix_queries_ = follow("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache");
  Followed prefix_hits_ = follow("prefix_cache_hits_total", "Prompt tokens found in the prefix cache");
  Followed output_tokens_ = follow("generation_tokens_total", "Tokens generated");
  Followed steps_ = follow("engine_steps_total", "Forward passes");
  Followed preemptions_ = follow("num_preemptions_total", "Sequences evicted to make room");
  Followed cancelled_ = follow("requests_cancelled_total", "Sequences cancelled");
  Followed failed_ = follow("requests_failed_total", "Sequences ended by an error");
  Followed rejected_ = follow("requests_rejected_total", "Sequences refused at the door");
  Followed busy_ = follow("engine_busy_seconds_total", "Time in forward passes");
  Followed queue_time_ = follow("request_queue_seconds_total", "Time that sequences waited");
  Followed prefill_time_ = follow("request_prefill_seconds_total", "Time that sequences were in prefill");
  Followed decode_time_ = follow("request_decode_seconds_total", "Time that sequences were in decode");
  prometheus::Gauge& running_ = gauge("num_requests_running", "Sequences in the batch");
  prometheus::Gauge& waiting_ = gauge("num_requests_waiting", "Sequences in the queue");
  prometheus::Gauge& kv_usage_ = gauge("kv_cache_usage_perc", "KV blocks held by live sequences, 0 to 1");
  prometheus::Gauge& kv_total_ = gauge("kv_blocks_total", "KV blocks there are");
  prometheus::Gauge& kv_cached_ = gauge("kv_blocks_cached", "KV blocks held only for reuse");
  prometheus::Gauge& host_total_ = gauge("kv_host_blocks_total", "KV blocks that the host tier can hold");
  prometheus::Gauge& host_used_ = gauge("kv_host_blocks_used", "KV blocks that it holds");
  Followed host_hits_ = follow("kv_host_hit_blocks_total", "KV blocks of prefixes that came from the host tier");
  Followed to_host_ = follow("kv_host_copied_out_bytes_total", "Bytes of KV blocks copied to the host tier");
  Followed from_host_ = follow("kv_host_copied_in_bytes_total", "Bytes of KV blocks copied back from it");
};

// The families that vLLM has, once more under its prefix.
void add_vllm_names(std::vector<prometheus::MetricFamily>& families, const std::string& prefix) {
  if (prefix == vllm_prefix) return;
  const size_t count = families.size();
  for (size_t i = 0; i < count; ++i) {
    if (!families[i].name.starts_with(prefix)) continue;
    const std::string_view name = std::string_view(families[i].name).substr(prefix.size());
    if (std::ranges::find(vllm_names, name) == vllm_names.end()) continue;
    prometheus::MetricFamily copy = families[i];
    copy.name = vllm_prefix + std::string(name);
    for (auto& metric : copy.metric) metric.label.push_back({"engine", "0"});
    families.push_back(std::move(copy));
  }
}

}  // namespace

struct ServerMetrics::Impl {
  explicit Impl(std::string p) : prefix(std::move(p)), devices(registry) {}

  const std::string prefix;
  prometheus::Registry registry;
  std::mutex mutex;  // of `models` and of a scrape
  std::map<std::pair<std::string, std::string>, std::shared_ptr<ModelSeries>> models;
  TritonDeviceMetrics devices;
  prometheus::Family<prometheus::Counter>& http = prometheus::BuildCounter()
                                                      .Name(prefix + "http_requests_total")
                                                      .Help("HTTP requests answered, by route and status")
                                                      .Register(registry);
  prometheus::Gauge& ready = prometheus::BuildGauge()
                                 .Name(prefix + "ready")
                                 .Help("1 while the server takes requests")
                                 .Register(registry)
                                 .Add({});
  prometheus::Gauge& connections =
      prometheus::BuildGauge().Name(prefix + "http_connections").Help("Open connections").Register(registry).Add({});
};

ServerMetrics::ServerMetrics(const std::string& prefix) : impl_(std::make_unique<Impl>(prefix)) {}
ServerMetrics::~ServerMetrics() = default;

std::shared_ptr<ModelMetrics> ServerMetrics::model(const std::string& name, const std::string& version) {
  const std::lock_guard lock(impl_->mutex);
  auto& entry = impl_->models[{name, version}];
  if (!entry) entry = std::make_shared<ModelSeries>(impl_->registry, impl_->prefix, name, version);
  return entry;
}

void ServerMetrics::http_request(std::string_view route, int status) {
  impl_->http.Add({{"route", std::string(route)}, {"status", std::to_string(status)}}).Increment();
}

std::string ServerMetrics::text(const std::vector<Snapshot>& models, bool ready, size_t connections) {
  Impl& m = *impl_;
  const std::lock_guard lock(m.mutex);
  double busy = 0;
  for (const Snapshot& s : models) {
    for (const auto& [name, series] : m.models) {
      if (series == s.metrics) series->update(s.stats);
    }
    busy += s.stats.busy_seconds;
  }
  m.devices.update(busy);
  m.ready.Set(ready ? 1 : 0);
  m.connections.Set(static_cast<double>(connections));
  auto families = m.registry.Collect();
  add_vllm_names(families, m.prefix);
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace pinion
