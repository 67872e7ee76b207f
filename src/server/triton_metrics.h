// One model's series under Triton's names (nv_*), with those of its TensorRT-LLM backend. Times are microseconds.
//
// nv_inference_compute_input_duration_us is the time in prefill and nv_inference_compute_output_duration_us the time in
// decode: what these names are read as where a language model is served. compute_infer is both together.
#pragma once

#include <prometheus/registry.h>

#include "server/gpu_figures.h"
#include "server/metrics.h"

namespace pinion {

class TritonModelMetrics {
 public:
  TritonModelMetrics(prometheus::Registry& registry, const std::string& model, const std::string& version);
  ~TritonModelMetrics();
  void finished(size_t sequences, const RequestFigures& figures);
  void failed(FailureReason reason);
  void update(const LoopStats& stats);

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

// nv_gpu_* and nv_cpu_memory_*. Without an NVIDIA GPU the device that computes is the CPU: its series carry
// gpu_uuid="cpu", the share of the time since the last scrape that went into forward passes, and the process's memory.
class TritonDeviceMetrics {
 public:
  explicit TritonDeviceMetrics(prometheus::Registry& registry);
  ~TritonDeviceMetrics();
  void update(double busy_seconds);  // of all engines since the start

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace pinion
