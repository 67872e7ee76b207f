// pinion bench throughput: requests of random tokens through the engine loop, a given number in flight.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <optional>

#include "cli/bench.h"
#include "runtime/engine_loop.h"

namespace pinion::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct Results {  // filled by the sinks, on the engine thread
  std::mutex mutex;
  std::condition_variable changed;
  int32_t in_flight = 0;
  int64_t output_tokens = 0;
  std::vector<double> ttft_ms, token_ms, latency_ms;
  std::optional<Error> error;
};

struct Timeline {
  Clock::time_point submitted = Clock::now(), first;
  int64_t tokens = 0;
};

double ms(Clock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

// The host's own work by step, apart for steps that only decode: one with prompts launches kernel by kernel.
// Where the host chooses the tokens, as on the CPU, that is part of it.
struct HostWork {
  std::vector<double> decodes_us, prompts_us;
  int32_t most = 0;  // sequences of a step
  void add(const StepWork& w) {
    (w.decodes ? decodes_us : prompts_us).push_back(w.seconds * 1e6);
    most = std::max(most, w.sequences);
  }
  static Json figures(const std::vector<double>& us) {
    const double sum = std::accumulate(us.begin(), us.end(), 0.0);
    return {{"steps", us.size()},
            {"mean_us", us.empty() ? 0 : sum / static_cast<double>(us.size())},
            {"p99_us", quantile(us, 0.99)}};
  }
  Json json() const {
    return {{"decode_steps", figures(decodes_us)}, {"prompt_steps", figures(prompts_us)}, {"most_sequences", most}};
  }
};

OutputSink make_sink(Results& r) {
  auto t = std::make_shared<Timeline>();
  return [&r, t](OutputPiece piece) {
    const auto now = Clock::now();
    if (t->tokens == 0 && !piece.tokens.empty()) t->first = now;
    t->tokens += std::ssize(piece.tokens);
    if (piece.finish == FinishReason::none) return;
    const std::scoped_lock lock(r.mutex);
    --r.in_flight;
    r.output_tokens += t->tokens;
    if (t->tokens > 0) {
      r.ttft_ms.push_back(ms(t->first - t->submitted));
      r.latency_ms.push_back(ms(now - t->submitted));
      if (t->tokens > 1) r.token_ms.push_back(ms(now - t->first) / static_cast<double>(t->tokens - 1));
    }
    if (piece.error && !r.error) r.error = piece.error;
    r.changed.notify_all();
  };
}

}  // namespace

Status bench_throughput(BenchArgs a) {
  a.concurrency = std::min(a.concurrency, a.num_requests);
  if (!a.model.limits.max_seq_len) a.model.limits.max_seq_len = a.input_len + a.output_len;
  if (!a.model.limits.max_batch_size) a.model.limits.max_batch_size = a.concurrency;
  PINION_TRY(OpenModel m, open_model(a.model, {.max_num_tokens = 1024}));
  const ExecutorOptions& limits = m.executor->options();
  Results r;  // outlives the loop, whose thread calls the sinks
  LoopOptions options{.max_batch_size = limits.max_batch_size,
                      .max_num_tokens = limits.max_num_tokens,
                      .max_seq_len = limits.max_seq_len};
  options.max_queue = std::max(options.max_queue, a.concurrency + 1);
  HostWork work;
  options.on_step = [&work](const StepWork& w) { work.add(w); };
  EngineLoop loop(*m.executor, TextDecoderFactory(), options);

  const auto start = Clock::now();
  for (int32_t i = 0; i < a.num_requests; ++i) {
    {
      std::unique_lock lock(r.mutex);
      r.changed.wait(lock, [&] { return r.in_flight < a.concurrency || r.error; });
      if (r.error) break;
      ++r.in_flight;
    }
    Request request;
    request.id = fmt::format("bench-{}", i);
    request.prompt = random_tokens(a.input_len, m.executor->vocab_size(), a.seed + i);
    request.sampling = a.sampling;
    request.sampling.seed = a.seed + i;
    request.sampling.max_tokens = a.output_len;
    request.sampling.ignore_eos = true;
    auto ticket = loop.submit(std::move(request), make_sink(r));
    if (!ticket) {
      const std::scoped_lock lock(r.mutex);
      --r.in_flight;
      r.error = ticket.error();
    }
  }
  {
    std::unique_lock lock(r.mutex);
    r.changed.wait(lock, [&] { return r.in_flight == 0; });
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  loop.drain();
  const std::scoped_lock lock(r.mutex);
  if (r.error) return *r.error;
  const LoopStats stats = loop.stats();
  const double device = m.executor->device_seconds();  // of the steps alone: the rest of the time the device idled
  const double device_idle = device > 0 ? 1 - device / seconds : 0;
  const double requests_per_second = a.num_requests / seconds;
  const double output_rate = static_cast<double>(r.output_tokens) / seconds;
  const double total_rate =
      (static_cast<double>(r.output_tokens) + static_cast<double>(a.num_requests) * a.input_len) / seconds;
  if (a.json) {
    fmt::print("{}\n", Json{{"model", m.engine->manifest().model_name},
                            {"device", m.device->info().name},
                            {"threads", m.device->info().threads},
                            {"num_requests", a.num_requests},
                            {"concurrency", a.concurrency},
                            {"input_len", a.input_len},
                            {"output_len", a.output_len},
                            {"seconds", seconds},
                            {"requests_per_second", requests_per_second},
                            {"output_tokens", r.output_tokens},
                            {"output_tokens_per_second", output_rate},
                            {"total_tokens_per_second", total_rate},
                            {"ttft_p50_ms", quantile(r.ttft_ms, 0.5)},
                            {"ttft_p99_ms", quantile(r.ttft_ms, 0.99)},
                            {"tpot_p50_ms", quantile(r.token_ms, 0.5)},
                            {"tpot_p99_ms", quantile(r.token_ms, 0.99)},
                            {"latency_p50_ms", quantile(r.latency_ms, 0.5)},
                            {"latency_p99_ms", quantile(r.latency_ms, 0.99)},
                            {"steps", stats.steps},
                            {"device_idle", device > 0 ? Json(device_idle) : Json()},
                            {"host_work", work.json()},
                            {"preemptions", stats.preemptions},
                            {"cached_tokens", stats.cached_tokens},
                            {"host_hit_blocks", stats.host_hit_blocks},
                            {"bytes_to_host", stats.bytes_to_host},
                            {"bytes_from_host", stats.bytes_from_host}}
                           .dump());
    return {};
  }
  fmt::print("{} requests of {} + {} tokens, {} at once, in {:.2f} s\n", a.num_requests, a.input_len, a.output_len,
             a.concurrency, seconds);
  fmt::print("  {:.2f} requests/s, {:.1f} output tokens/s, {:.1f} tokens/s in all\n", requests_per_second, output_rate,
             total_rate);
  fmt::print("  time to first token p50 {:.1f} ms, p99 {:.1f} ms; per token p50 {:.2f} ms, p99 {:.2f} ms\n",
             quantile(r.ttft_ms, 0.5), quantile(r.ttft_ms, 0.99), quantile(r.token_ms, 0.5),
             quantile(r.token_ms, 0.99));
  const Json host = HostWork::figures(work.decodes_us);
  fmt::print("  host's own work per decode step {:.0f} us, p99 {:.0f} us\n", host["mean_us"].get<double>(),
             host["p99_us"].get<double>());
  if (device > 0) fmt::print("  {} steps, the device idle for {:.1f} % of the time\n", stats.steps, 100 * device_idle);
  return {};
}

}  // namespace pinion::cli
