#include "server/triton_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>

#include <algorithm>
#include <array>

namespace pinion {
namespace {

using prometheus::Labels;
constexpr double kMicro = 1e6;

prometheus::Counter& counter(prometheus::Registry& registry, const std::string& name, const std::string& help,
                             const Labels& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
}
prometheus::Gauge& gauge(prometheus::Registry& registry, const std::string& name, const std::string& help,
                         Labels labels, const std::string& key = {}, const std::string& value = {}) {
  if (!key.empty()) labels[key] = value;
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
}

}  // namespace

struct TritonModelMetrics::Series {
  Series(prometheus::Registry& r, const Labels& l)
      : success(counter(r, "nv_inference_request_success", "Requests answered; a batch counts once", l)),
        count(counter(r, "nv_inference_count", "Sequences answered", l)),
        executions(counter(r, "nv_inference_exec_count", "Requests run", l)),
        request_us(counter(r, "nv_inference_request_duration_us", "From arrival to end", l)),
        queue_us(counter(r, "nv_inference_queue_duration_us", "Waiting for a place in the batch", l)),
        input_us(counter(r, "nv_inference_compute_input_duration_us", "In prefill", l)),
        infer_us(counter(r, "nv_inference_compute_infer_duration_us", "In prefill and decode", l)),
        output_us(counter(r, "nv_inference_compute_output_duration_us", "In decode", l)),
        pending(gauge(r, "nv_inference_pending_request_count", "Sequences in the queue", l)),
        active(gauge(r, "nv_trt_llm_active_request_count", "Sequences in the batch", l)),
        blocks_used(gauge(r, "nv_trt_llm_kv_cache_block_used", "KV blocks held by live sequences", l)),
        request_active(gauge(r, kRequests, kRequestsHelp, l, "request_type", "active")),
        request_scheduled(gauge(r, kRequests, kRequestsHelp, l, "request_type", "scheduled")),
        request_waiting(gauge(r, kRequests, kRequestsHelp, l, "request_type", "waiting")),
        block_fraction(gauge(r, kBlocks, kBlocksHelp, l, kBlockType, "fraction")),
        block_free(gauge(r, kBlocks, kBlocksHelp, l, kBlockType, "free")),
        block_max(gauge(r, kBlocks, kBlocksHelp, l, kBlockType, "max")),
        block_used(gauge(r, kBlocks, kBlocksHelp, l, kBlockType, "used")),
        iterations(gauge(r, "nv_trt_llm_general_metrics", "Of the engine", l, "general_type", "iteration_counter")),
        timestamp(gauge(r, "nv_trt_llm_general_metrics", "Of the engine", l, "general_type", "timestamp")) {
    constexpr std::array reasons = {"REJECTED", "CANCELED", "BACKEND", "OTHER"};
    for (size_t i = 0; i < reasons.size(); ++i) {
      Labels labels = l;
      labels["reason"] = reasons[i];
      failures[i] = &counter(r, "nv_inference_request_failure", "Requests that were not answered", labels);
    }
  }

  static constexpr const char* kRequests = "nv_trt_llm_request_metrics";
  static constexpr const char* kRequestsHelp = "Sequences by state";
  static constexpr const char* kBlocks = "nv_trt_llm_kv_cache_block_metrics";
  static constexpr const char* kBlocksHelp = "KV blocks by state";
  static constexpr const char* kBlockType = "kv_cache_block_type";

  prometheus::Counter &success, &count, &executions, &request_us, &queue_us, &input_us, &infer_us, &output_us;
  prometheus::Gauge &pending, &active, &blocks_used, &request_active, &request_scheduled, &request_waiting,
      &block_fraction, &block_free, &block_max, &block_used, &iterations, &timestamp;
  std::array<prometheus::Counter*, 4> failures{};
};

TritonModelMetrics::TritonModelMetrics(prometheus::Registry& registry, const std::string& model,
                                       const std::string& version)
    : series_(std::make_unique<Series>(registry, Labels{{"model", model}, {"version", version}})) {}
TritonModelMetrics::~TritonModelMetrics() = default;

void TritonModelMetrics::finished(size_t sequences, const RequestFigures& figures) {
  Series& s = *series_;
  s.success.Increment();
  s.count.Increment(static_cast<double>(sequences));
  s.executions.Increment();
  s.request_us.Increment(figures.seconds * kMicro);
  s.queue_us.Increment(figures.queue_seconds * kMicro);
  s.input_us.Increment(figures.prefill_seconds * kMicro);
  s.infer_us.Increment((figures.prefill_seconds + figures.engine_decode_seconds) * kMicro);
  s.output_us.Increment(figures.engine_decode_seconds * kMicro);
}

void TritonModelMetrics::failed(FailureReason reason) {
  series_->failures[static_cast<size_t>(reason)]->Increment();
}

void TritonModelMetrics::update(const LoopStats& stats) {
  Series& s = *series_;
  s.pending.Set(stats.waiting);
  s.active.Set(stats.running);
  s.blocks_used.Set(stats.blocks_used);
  s.request_active.Set(stats.running + stats.waiting);
  s.request_scheduled.Set(stats.running);
  s.request_waiting.Set(stats.waiting);
  s.block_fraction.Set(stats.blocks_total > 0 ? static_cast<double>(stats.blocks_used) / stats.blocks_total : 0);
  s.block_free.Set(stats.blocks_total - stats.blocks_used);
  s.block_max.Set(stats.blocks_total);
  s.block_used.Set(stats.blocks_used);
  s.iterations.Set(static_cast<double>(stats.steps));
  s.timestamp.SetToCurrentTime();
}

struct TritonDeviceMetrics::Series {
  explicit Series(prometheus::Registry& r)
      : utilization(prometheus::BuildGauge()
                        .Name("nv_gpu_utilization")
                        .Help("Share of the time that the device computes, 0 to 1")
                        .Register(r)),
        total(prometheus::BuildGauge().Name("nv_gpu_memory_total_bytes").Help("Memory of the device").Register(r)),
        used(prometheus::BuildGauge().Name("nv_gpu_memory_used_bytes").Help("Memory in use on the device").Register(r)),
        cpu_total(gauge(r, "nv_cpu_memory_total_bytes", "Memory of the host", {})),
        cpu_used(gauge(r, "nv_cpu_memory_used_bytes", "Memory of this process", {})) {}

  void set(const GpuFigures& g) {
    const Labels labels{{"gpu_uuid", g.uuid}};
    utilization.Add(labels).Set(g.utilization);
    total.Add(labels).Set(static_cast<double>(g.memory_total));
    used.Add(labels).Set(static_cast<double>(g.memory_used));
  }

  prometheus::Family<prometheus::Gauge>&utilization, &total, &used;
  prometheus::Gauge &cpu_total, &cpu_used;
  ServerMetrics::Clock::time_point last = ServerMetrics::Clock::now();
  double last_busy = 0;
};

TritonDeviceMetrics::TritonDeviceMetrics(prometheus::Registry& registry)
    : series_(std::make_unique<Series>(registry)) {}
TritonDeviceMetrics::~TritonDeviceMetrics() = default;

void TritonDeviceMetrics::update(double busy_seconds) {
  Series& s = *series_;
  const auto now = ServerMetrics::Clock::now();
  const double passed = std::chrono::duration<double>(now - s.last).count();
  const double busy = std::max(0.0, busy_seconds - s.last_busy);
  s.last = now;
  s.last_busy = busy_seconds;
  const uint64_t host = host_memory_bytes(), process = process_memory_bytes();
  s.cpu_total.Set(static_cast<double>(host));
  s.cpu_used.Set(static_cast<double>(process));
  const auto gpus = gpu_figures();
  for (const GpuFigures& g : gpus) s.set(g);
  if (gpus.empty()) {
    s.set({.uuid = "cpu",
           .utilization = passed > 0 ? std::min(1.0, busy / passed) : 0,
           .memory_total = host,
           .memory_used = process});
  }
}

}  // namespace pinion
