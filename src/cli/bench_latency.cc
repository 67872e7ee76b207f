// pinion bench latency: the executor driven by hand, without scheduler or sampling. Every time is set beside its floor
// from ceilings measured in the same run; a time below its floor means that the measurement is wrong, and fails the
// run.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "backend/all/ceilings.h"
#include "base/check.h"
#include "cli/bench.h"

namespace pinion::cli {
namespace {

double milliseconds_of(const auto& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// The batch's prompts and pages: sequence i owns the same pages in every run.
class Run {
 public:
  Run(EngineExecutor& e, const BenchArgs& a) : e_(e), a_(a) {
    const int32_t length = a.input_len + a.output_len;
    const int32_t blocks = (length + e.block_size() - 1) / e.block_size();
    int32_t next = 0;
    for (int32_t s = 0; s < a.batch_size; ++s) {
      tokens_.push_back(random_tokens(length, e.vocab_size(), a.seed + s));
      auto& tables = tables_.emplace_back();
      for (size_t g = 0; g < e.kv_groups().size(); ++g) {
        tables.emplace_back(blocks);
        std::iota(tables.back().begin(), tables.back().end(), next);
        next += blocks;
      }
    }
  }

  // All prompts, in steps as full as the limit allows; the last token of each gives logits. Milliseconds.
  double prefill() {
    return milliseconds_of([&] {
      Batch batch;
      int32_t room = e_.options().max_num_tokens;
      for (int32_t s = 0; s < a_.batch_size; ++s) {
        for (int32_t past = 0; past < a_.input_len;) {
          const int32_t n = std::min(room, a_.input_len - past);
          batch.seqs.push_back(piece(s, past, n, past + n == a_.input_len));
          past += n;
          room -= n;
          if (room == 0) {
            forward(batch);
            batch.seqs.clear();
            room = e_.options().max_num_tokens;
          }
        }
      }
      if (!batch.seqs.empty()) forward(batch);
    });
  }

  // `steps` steps of one token of every sequence after the prompt: milliseconds between one's end and the next's. Where
  // the device chooses tokens, as serving does it: a step is issued while the one before it runs.
  std::vector<double> decode(int32_t steps) {
    std::vector<double> times;
    auto last = std::chrono::steady_clock::now();
    const auto ended = [&] {
      const auto now = std::chrono::steady_clock::now();
      times.push_back(std::chrono::duration<double, std::milli>(now - last).count());
      last = now;
    };
    const std::vector<RowSampling> greedy(a_.batch_size);
    for (int32_t step = 0; step < steps; ++step) {
      Batch batch;
      for (int32_t s = 0; s < a_.batch_size; ++s) {
        batch.seqs.push_back(piece(s, a_.input_len + step, 1, true));
        if (e_.samples() && step > 0) batch.seqs.back().earlier_row = s;
      }
      if (!e_.samples()) {
        e_.forward(batch);
        ended();
        continue;
      }
      e_.issue(batch, {.rows = greedy});
      if (step > 0) e_.collect(), ended();
    }
    if (e_.samples() && steps > 0) e_.collect(), ended();
    return times;
  }

 private:
  // As serving does it: where the device chooses tokens itself, rows of logits stay there.
  void forward(const Batch& batch) {
    const auto outputs = std::ranges::count(batch.seqs, 1, &BatchSeq::outputs);
    if (!e_.samples() || outputs == 0) {
      e_.forward(batch);
      return;
    }
    const std::vector<RowSampling> greedy(outputs);
    e_.forward_sampled(batch, greedy);
  }

  BatchSeq piece(int32_t s, int32_t past, int32_t n, bool output) const {
    BatchSeq seq{.tokens = std::span(tokens_[s]).subspan(past, n),
                 .past = past,
                 .rope_length = a_.input_len,
                 .blocks = {},
                 .outputs = output ? 1 : 0};
    for (const auto& t : tables_[s]) seq.blocks.emplace_back(t);
    return seq;
  }

  EngineExecutor& e_;
  const BenchArgs& a_;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<std::vector<std::vector<int32_t>>> tables_;  // by sequence, by KV group
};

void take_better(DeviceCeilings& best, const DeviceCeilings& other) {
  if (other.read_gbps > best.read_gbps) best.read_gbps = other.read_gbps, best.read_threads = other.read_threads;
  best.f32_gflops = std::max(best.f32_gflops, other.f32_gflops);
  best.matrix_gflops = std::max(best.matrix_gflops, other.matrix_gflops);
}

// Milliseconds of arithmetic at the ceilings: a GPU multiplies everything on its matrix units, a CPU what is in bf16.
double arithmetic_ms(const StepCost::Flops& flops, const DeviceCeilings& c) {
  const double matrix = c.matrix_gflops > 0 ? c.matrix_gflops : c.f32_gflops;
  return (flops.bf16 / matrix + flops.other / (c.f32_gflops > 0 ? c.f32_gflops : matrix)) * 1e-6;
}

}  // namespace

Status bench_latency(BenchArgs a) {
  a.model.limits.max_batch_size = a.batch_size;
  if (!a.model.limits.max_seq_len) a.model.limits.max_seq_len = a.input_len + a.output_len;
  if (a.model.limits.max_seq_len < a.input_len + a.output_len) {
    return fail(Errc::invalid_argument, "the prompt and the output are longer than the limit", "--max_seq_len",
                "raise it, or shorten --input_len or --output_len");
  }
  const int64_t prompt = int64_t{a.batch_size} * a.input_len;
  const auto step_tokens = static_cast<int32_t>(std::clamp<int64_t>(prompt, a.batch_size, 2048));
  if (a.model.limits.max_num_tokens && a.model.limits.max_num_tokens < a.batch_size)
    a.model.limits.max_num_tokens = a.batch_size;
  PINION_TRY(OpenModel m,
             open_model(a.model, {.max_num_tokens = std::max(step_tokens, a.batch_size), .max_outputs = a.batch_size}));
  EngineExecutor& e = *m.executor;
  const int64_t need = blocks_needed(e.kv_groups(), e.block_size(), a.batch_size, a.input_len + a.output_len);
  if (need > e.options().num_blocks) {
    return fail(Errc::exhausted,
                fmt::format("the KV cache holds {} blocks, the batch needs {}", e.options().num_blocks, need),
                "--kv_cache_free_memory_fraction", "raise the fraction or shorten the run");
  }

  // A ceiling holds for reads of this size: a model that stays in the caches is judged by reads that do.
  const StepCost cost = step_cost(*m.engine, a.batch_size);
  const double step_bytes = cost.weight_bytes + a.batch_size * kv_bytes(*m.engine, a.input_len + a.output_len / 2);
  const bool on_host = m.device->host_visible();
  const double most = (on_host ? 1.0 : 4.0) * (1 << 30);  // a GPU reads 1 GiB in the time that it takes to get going
  const auto read_bytes = static_cast<size_t>(std::clamp(on_host ? step_bytes : most, double{16 << 20}, most));
  const DeviceOptions device{.threads = on_host ? m.device->info().threads : 0, .isa = a.model.build.isa};
  PINION_TRY(DeviceCeilings ceilings, measure_ceilings(*m.device, device, read_bytes));

  Run run(e, a);
  run.prefill();  // warm-up: pages are touched, threads are awake
  std::vector<double> prefill;
  for (int32_t i = 0; i < a.iterations; ++i) prefill.push_back(run.prefill());
  const std::vector<double> decode = run.decode(a.output_len - 1);
  // Once more: on a shared machine the first measurement may have met a bad moment.
  PINION_TRY(const DeviceCeilings again, measure_ceilings(*m.device, device, read_bytes));
  take_better(ceilings, again);

  const double ttft = quantile(prefill, 0.5), step = quantile(decode, 0.5);
  // On a GPU, whose matrix units take attention too, it counts.
  const StepCost::Flops attention{.bf16 = on_host ? 0 : attention_flops(*m.engine, a.input_len)};
  const double prefill_floor =
      arithmetic_ms(cost.per_token, ceilings) * static_cast<double>(prompt) +
      (arithmetic_ms(cost.per_output, ceilings) + arithmetic_ms(attention, ceilings)) * a.batch_size;
  const double read_floor = step_bytes / ceilings.read_gbps * 1e-6;
  const double compute_floor =
      (arithmetic_ms(cost.per_token, ceilings) + arithmetic_ms(cost.per_output, ceilings)) * a.batch_size;
  const std::string_view arithmetic =
      ceilings.matrix_gflops > 0 && (!on_host || cost.per_token.bf16 > 0) ? "matrix" : "f32";
  // What the units beside the registers' are worth: the same floors at the rate of f32 multiply-adds alone.
  const DeviceCeilings plain{.f32_gflops = ceilings.f32_gflops};
  const bool both = on_host && arithmetic == "matrix";
  const double f32_prefill = both ? arithmetic_ms(cost.per_token, plain) * static_cast<double>(prompt) +
                                        arithmetic_ms(cost.per_output, plain) * a.batch_size
                                  : prefill_floor;
  const double decode_floor = std::max(read_floor, compute_floor);
  const auto ratio = [](double over, double under) { return under > 0 ? over / under : 0; };

  const double of_arithmetic = ratio(prefill_floor, ttft), of_read = decode.empty() ? 0 : ratio(read_floor, step),
               of_arithmetic_decode = decode.empty() ? 0 : ratio(compute_floor, step);
  const auto limits = e.options();
  if (a.json) {
    const Json null;
    fmt::print("{}\n", Json{{"model", m.engine->manifest().model_name},
                            {"device", m.device->info().name},
                            {"isa", m.device->info().isa},
                            {"threads", m.device->info().threads},
                            {"dtype", name(m.engine->manifest().dtype)},
                            {"input_len", a.input_len},
                            {"output_len", a.output_len},
                            {"batch_size", a.batch_size},
                            {"max_num_tokens", limits.max_num_tokens},
                            {"open_seconds", m.open_seconds},
                            {"time_to_first_token_ms", ttft},
                            {"prefill_tokens_per_second", static_cast<double>(prompt) / ttft * 1e3},
                            {"prefill_floor_ms", prefill_floor},
                            {"decode_ms_per_token", decode.empty() ? null : Json(step)},
                            {"decode_p99_ms", decode.empty() ? null : Json(quantile(decode, 0.99))},
                            {"decode_tokens_per_second", decode.empty() ? null : Json(a.batch_size / step * 1e3)},
                            {"decode_floor_ms", decode_floor},
                            {"bytes_per_step", step_bytes},
                            {"launches_per_step", e.launches()},
                            {"memory",
                             {{"weights", e.memory().weights},
                              {"kv", e.memory().kv},
                              {"arena", e.memory().arena},
                              {"workspace", e.memory().workspace}}},
                            {"ceilings",
                             {{"read_gbps", ceilings.read_gbps},
                              {"f32_gflops", on_host ? Json(ceilings.f32_gflops) : null},
                              {"matrix_gflops", ceilings.matrix_gflops > 0 ? Json(ceilings.matrix_gflops) : null},
                              {"read_threads", ceilings.read_threads},
                              {"read_buffer_bytes", read_bytes}}},
                            {"ratios",
                             {{"decode_over_floor", decode.empty() ? null : Json(ratio(step, decode_floor))},
                              {"prefill_over_floor", ratio(ttft, prefill_floor)},
                              {"decode_of_floor", decode.empty() ? null : Json(ratio(decode_floor, step))},
                              {"decode_of_read_ceiling", of_read},
                              {fmt::format("decode_of_{}_ceiling", arithmetic), of_arithmetic_decode},
                              {fmt::format("prefill_of_{}_ceiling", arithmetic), of_arithmetic},
                              {"prefill_over_f32_rate", on_host ? Json(ratio(f32_prefill, ttft)) : null}}}}
                           .dump());
  } else {
    fmt::print("{}: {}, {} threads, {}; batch {}, {} tokens in, {} out\n", m.engine->manifest().model_name,
               name(m.engine->manifest().dtype), m.device->info().threads, m.device->info().isa, a.batch_size,
               a.input_len, a.output_len);
    fmt::print("  time to first token {:10.2f} ms   {:.0f} tokens/s, {:.2f} of the {} ceiling ({:.1f} GFLOP/s)", ttft,
               static_cast<double>(prompt) / ttft * 1e3, of_arithmetic, arithmetic,
               arithmetic == "matrix" ? ceilings.matrix_gflops : ceilings.f32_gflops);
    if (both) fmt::print(", {:.2f} of f32 multiply-adds' ({:.1f})", ratio(f32_prefill, ttft), ceilings.f32_gflops);
    fmt::print("\n");
    if (!decode.empty()) {
      fmt::print(
          "  decode, each step   {:10.2f} ms   {:.1f} tokens/s, {:.2f} of the floor: {:.2f} ms to read at {:.1f} GB/s "
          "(over {:.0f} MiB), {:.2f} ms to multiply\n",
          step, a.batch_size / step * 1e3, ratio(decode_floor, step), read_floor, ceilings.read_gbps,
          static_cast<double>(read_bytes) / (1 << 20), compute_floor);
    }
  }
  for (const auto& [what, value] : {std::pair{"decode_of_read_ceiling", of_read},
                                    {"decode_of_arithmetic_ceiling", of_arithmetic_decode},
                                    {"prefill_of_arithmetic_ceiling", of_arithmetic}}) {
    if (value > 1.00) {
      return fail(
          Errc::internal,
          fmt::format("{} is {:.3f}: faster than this machine can be, so the measurement is wrong", what, value),
          "bench latency", "run it again on a quiet machine");
    }
  }
  return {};
}

}  // namespace pinion::cli
