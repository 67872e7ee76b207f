// What `pinion bench serve` measured: the definitions of vLLM's benchmark, so that numbers compare. Seconds inside,
// milliseconds where written.
//
//   ttft  first event with a choice - request sent        e2e   last event with a choice - request sent
//   tpot  (e2e - ttft) / (output tokens - 1), of requests with more than one      itl   every gap between events,
//   pooled goodput  requests that kept every limit, per second
#pragma once

#include <string>
#include <vector>

#include "base/json.h"

namespace pinion::cli {

struct RequestRecord {
  bool good = false;  // answered
  std::string error;
  double start = 0, ttft = 0, e2e = 0;  // start: since the point's begin
  std::vector<double> gaps;
  int64_t input_tokens = 0, output_tokens = 0;

  double tpot() const { return output_tokens > 1 ? (e2e - ttft) / static_cast<double>(output_tokens - 1) : 0; }
};

struct Limits {  // of goodput, ms; 0: none
  double ttft = 0, tpot = 0, e2el = 0;
  bool any() const { return ttft > 0 || tpot > 0 || e2el > 0; }
};

struct LoadPoint {  // one concurrency, or one rate
  int32_t concurrency = 0;
  double request_rate = 0;  // per second; 0: closed loop, infinity: all at once
  double duration = 0;
  std::vector<RequestRecord> requests;
};

// {completed, failed, duration_s, request_throughput, output_throughput, total_token_throughput, ttft_ms {mean, std,
// p50, p90, p95, p99}, tpot_ms, itl_ms, e2el_ms, goodput?, cost_per_million_output_tokens?, …}
OrderedJson summarize(const LoadPoint& point, const Limits& limits, double price_per_hour);
// Linear interpolation between ranks; 0 when empty. q from 0 to 1.
double percentile(std::vector<double> values, double q);
// One file without references to others: tables and plots of a report {"config": {…}, "points": […]}.
std::string html_report(const OrderedJson& report);

}  // namespace pinion::cli
