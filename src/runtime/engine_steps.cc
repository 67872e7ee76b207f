// What the engine thread does: plan, commit, forward, sample, retire, send, step after step.
#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "runtime/engine_loop_impl.h"

namespace pinion {

namespace {

double seconds(Clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

bool contains(std::span<const int32_t> ids, int32_t id) {
  return std::ranges::find(ids, id) != ids.end();
}

}  // namespace

// -----------------------------------------------------------------------------------------------

void EngineLoop::Impl::run() {
  for (;;) {
    std::vector<std::unique_ptr<Sequence>> arrived;
    std::vector<uint64_t> cancelled;
    bool stopping = false;
    {
      std::unique_lock lock(mutex);
      wake.wait(lock, [&] {
        return stop || !inbox.empty() || !cancels.empty() || !queues.running.empty() || !queues.waiting.empty();
      });
      arrived = std::exchange(inbox, {});
      stats.waiting += static_cast<int32_t>(arrived.size());  // until publish() counts them: max_queue holds throughout
      cancelled = std::exchange(cancels, {});
      stopping = stop;
    }
    const std::lock_guard turn_lock(turn_mutex);
    std::vector<Sequence*> fresh;
    for (auto& seq : arrived) {
      fresh.push_back(seq.get());
      live.emplace(seq->ticket, std::move(seq));
    }
    if (stopping) {
      while (!live.empty()) send(*live.begin()->second, {.finish = FinishReason::cancelled});
      publish();
      return;
    }
    try {
      turn(fresh, cancelled);
    } catch (const std::exception& e) {
      // Our own bug: the pool may be inconsistent, so nothing runs on. Every request hears of it, none hangs.
      spdlog::critical("the engine loop stops: {}", e.what());
      {
        const std::lock_guard lock(mutex);
        dead = e.what();
        for (auto& seq : inbox) live.emplace(seq->ticket, std::move(seq));
        inbox.clear();
      }
      queues = {};
      while (!live.empty()) {
        live.begin()->second->table = {};
        send(*live.begin()->second,
             {.finish = FinishReason::error, .error = fail(Errc::internal, "the engine stopped", e.what())});
      }
    }
    publish();
  }
}

void EngineLoop::Impl::turn(std::span<Sequence* const> arrived, const std::vector<uint64_t>& cancelled) {
  for (Sequence* seq : arrived) {
    seq->root.rope_variant = executor.rope_variant(seq->prompt_len);
    seq->rank = schedule_rank(seq->request.priority, steps);
    enqueue(queues.waiting, seq);
  }
  for (const uint64_t ticket : cancelled)
    if (const auto it = live.find(ticket); it != live.end()) send(*it->second, {.finish = FinishReason::cancelled});
  if (!queues.running.empty() || !queues.waiting.empty()) step();
}

void EngineLoop::Impl::step() {
  const auto begin = Clock::now();
  const Plan plan = scheduler.plan(queues);
  check(!plan.items.empty() || !plan.preempted.empty(), "nothing can run, and requests wait");
  scheduler.commit(plan, queues);
  ++steps;
  uint64_t prompt_tokens = 0, cached_tokens = 0;
  double queued = 0;
  for (const PlanItem& item : plan.items) {
    Sequence& seq = *item.seq;
    if (!item.admitted || std::exchange(seq.admitted_before, true)) continue;
    seq.admitted = begin;
    seq.cached_tokens = item.past;
    prompt_tokens += seq.prompt_len;
    cached_tokens += item.past;
    queued += seconds(begin - seq.submitted);
  }
  {
    const std::lock_guard lock(mutex);
    ++stats.steps;
    stats.preemptions += plan.preempted.size();
    stats.prompt_tokens += prompt_tokens;
    stats.cached_tokens += cached_tokens;
    stats.queue_seconds += queued;
  }
  publish();
  if (plan.items.empty()) return;

  StepRows rows;
  try {
    rows = run_batch(plan);
  } catch (const std::exception& e) {
    spdlog::error("a step failed: {}", e.what());
    for (const PlanItem& item : plan.items)
      fail_sequence(*item.seq, fail(Errc::internal, "the device failed during this request", e.what(), "try again"));
    return;
  }

  const auto take = [](std::span<const float>& all, size_t size) {
    const auto out = all.first(std::min(size, all.size()));
    all = all.subspan(out.size());
    return out;
  };
  const auto vocab = static_cast<size_t>(executor.vocab_size()), width = static_cast<size_t>(executor.hidden_size());
  for (const PlanItem& item : plan.items) {
    Sequence& seq = *item.seq;
    OutputPiece piece;
    Status read;
    const auto logits = take(rows.logits, item.outputs * vocab), hidden = take(rows.hidden, item.outputs * width);
    if (seq.pools()) {
      read = pool_rows(item, hidden, piece);
    } else if (!rows.tokens.empty()) {
      if (item.outputs > 0) read = read_token(item, rows.tokens.front(), piece);
      rows.tokens = rows.tokens.subspan(item.outputs);
    } else {
      read = read_rows(item, logits, piece);
    }
    if (!read) {
      fail_sequence(seq, read.error(), std::move(piece));
      continue;
    }
    scheduler.retire(item);
    if (!piece.tokens.empty() || piece.finish != FinishReason::none) send(seq, std::move(piece));
  }
  const std::lock_guard lock(mutex);
  stats.busy_seconds += seconds(Clock::now() - begin);
}

// What the device draws with, when it can do all that the step's requests ask for.
std::optional<std::vector<RowSampling>> EngineLoop::Impl::device_sampling(const Plan& plan) const {
  if (!executor.samples()) return std::nullopt;
  std::vector<RowSampling> rows;
  for (const PlanItem& item : plan.items) {
    if (item.outputs == 0) continue;
    const Sequence& seq = *item.seq;
    const SamplingParams& p = seq.request.sampling;
    const bool plain = item.outputs == 1 && !seq.pools() && item.past + item.tokens == seq.length() && p.logprobs < 0 &&
                       p.prompt_logprobs < 0 && p.repetition_penalty == 1 && p.presence_penalty == 0 &&
                       p.frequency_penalty == 0 && p.logit_bias.empty() && p.bad_words.empty() &&
                       seq.output_tokens() >= p.min_tokens;
    if (!plain) return std::nullopt;
    rows.push_back({.temperature = p.temperature,
                    .top_p = p.top_p,
                    .min_p = p.min_p,
                    .top_k = p.top_k,
                    .uniform = Sampler::uniform(seq.sampler.seed, seq.output_tokens())});
  }
  if (rows.empty()) return std::nullopt;
  return rows;
}

// A token for each row, or the logits of all rows and what their head read, or that alone.
EngineLoop::Impl::StepRows EngineLoop::Impl::run_batch(const Plan& plan) {
  Batch batch{.seqs = {}, .hidden = false, .logits = false};
  StepRows out;
  size_t rows = 0;
  for (const PlanItem& item : plan.items) {
    const Sequence& seq = *item.seq;
    BatchSeq& b = batch.seqs.emplace_back();
    b.tokens = std::span(seq.tokens).subspan(item.past, item.tokens);
    b.past = item.past;
    b.rope_length = seq.prompt_len;
    b.outputs = item.outputs;
    for (const auto& group : seq.table.blocks) b.blocks.emplace_back(group);
    rows += item.outputs;
    (seq.pools() ? batch.hidden : batch.logits) = true;
  }
  if (const auto sampling = device_sampling(plan)) {
    out.tokens = executor.forward_sampled(batch, *sampling);
    check(out.tokens.size() == rows, "the executor returned another number of tokens");
    return out;
  }
  out.logits = executor.forward(batch);
  if (batch.hidden) out.hidden = executor.hidden();
  check(out.logits.size() == (batch.logits ? rows * executor.vocab_size() : 0),
        "the executor returned another number of logits");
  check(out.hidden.size() == (batch.hidden ? rows * executor.hidden_size() : 0),
        "the executor returned another number of hidden states");
  return out;
}

// What a sequence's rows say: logprobs of prompt tokens, and its next token when the last row is of its last token.
Status EngineLoop::Impl::read_rows(const PlanItem& item, std::span<const float> rows, OutputPiece& piece) {
  Sequence& seq = *item.seq;
  const auto vocab = static_cast<size_t>(executor.vocab_size());
  const int32_t first = item.past + item.tokens - item.outputs;
  for (int32_t r = 0; r < item.outputs; ++r) {
    const auto row = rows.subspan(r * vocab, vocab);
    const int32_t at = first + r;
    if (seq.prompt_logprobs >= 0 && at == seq.prompt_rows && at < seq.prompt_len - 1) {
      PINION_TRY(TokenLogprob entry, Sampler::logprob(row, seq.tokens[at + 1], seq.prompt_logprobs));
      seq.prompt_entries.push_back(std::move(entry));
      seq.prompt_rows = at + 1;
    }
    if (at != seq.length() - 1) continue;
    PINION_TRY(const Sampled sampled,
               sampler.sample(row, seq.request.sampling, seq.sampler, seq.history, seq.tokens, seq.output_tokens()));
    append(seq, sampled, piece);
    break;
  }
  return {};
}

// Adds up the rows that the pooling counts; behind the prompt's last token their mean is the answer.
Status EngineLoop::Impl::pool_rows(const PlanItem& item, std::span<const float> hidden, OutputPiece& piece) {
  Sequence& seq = *item.seq;
  const auto width = static_cast<size_t>(executor.hidden_size());
  seq.pooled.resize(width);
  for (size_t i = 0; i < hidden.size(); ++i) seq.pooled[i % width] += hidden[i];
  if (item.outputs > 0) seq.prompt_rows = item.past + item.tokens;
  if (item.past + item.tokens < seq.prompt_len) return {};
  const double rows = seq.request.pooling == Pooling::mean ? seq.prompt_len : 1;
  for (const double sum : seq.pooled) {
    if (!std::isfinite(sum)) {
      return fail(Errc::internal, "numerical_error: the hidden states are not finite", {},
                  "this request's input breaks the model's arithmetic; `pinion diff` names the first layer");
    }
    piece.embedding.push_back(static_cast<float>(sum / rows));
  }
  piece.finish = FinishReason::stop;
  return {};
}

Status EngineLoop::Impl::read_token(const PlanItem& item, int32_t token, OutputPiece& piece) {
  if (token == kNotFinite) {
    return fail(Errc::internal, "numerical_error: the logits are not finite", {},
                "this request's input breaks the model's arithmetic; `pinion diff` names the first layer");
  }
  append(*item.seq, Sampled{.token = token, .logprob = {}}, piece);
  return {};
}

void EngineLoop::Impl::append(Sequence& seq, const Sampled& sampled, OutputPiece& piece) {
  const SamplingParams& p = seq.request.sampling;
  const int32_t token = sampled.token;
  if (seq.output_tokens() == 0) {
    seq.first_token = Clock::now();
    piece.prompt_logprobs = std::exchange(seq.prompt_entries, {});
  }
  seq.tokens.push_back(token);
  seq.history.add_output(token);
  piece.tokens.push_back(token);
  if (p.logprobs >= 0) piece.logprobs.push_back(sampled.logprob);

  // The end and stop tokens are part of the tokens, not of the text.
  const bool stop_id = contains(p.stop_token_ids, token);
  if (stop_id || (!p.ignore_eos && contains(eos, token))) {
    piece.finish = FinishReason::stop;
    if (stop_id) piece.stop_reason = std::to_string(token);
  } else if (seq.text) {
    piece.text = seq.text->push(token, seq.output_tokens() >= p.min_tokens);
  }
  const bool full = seq.length() >= seq.max_len;
  if (seq.text && (full || piece.finish == FinishReason::stop)) piece.text += seq.text->finish();
  if (seq.text && seq.text->stopped()) {
    piece.finish = FinishReason::stop;
    piece.stop_reason = *seq.text->stopped();
  } else if (full && piece.finish == FinishReason::none) {
    piece.finish = FinishReason::length;
  }
}

// The one way out. A finished sequence gives its blocks back first, and is gone when this returns.
void EngineLoop::Impl::send(Sequence& seq, OutputPiece piece) {
  piece.prompt_tokens = seq.prompt_len;
  piece.cached_tokens = seq.cached_tokens;
  piece.output_tokens = seq.output_tokens();
  const bool last = piece.finish != FinishReason::none;
  if (last) {
    dequeue(queues.running, &seq);
    dequeue(queues.waiting, &seq);
    pool.release(seq.table);
    publish();
  }
  {
    const std::lock_guard lock(mutex);
    stats.output_tokens += piece.tokens.size();
    const auto now = Clock::now();
    if (!piece.tokens.empty() && piece.output_tokens == static_cast<int32_t>(piece.tokens.size()))
      stats.prefill_seconds += seconds(seq.first_token - seq.admitted);
    if (last) {
      piece.queue_seconds = static_cast<float>(seconds((seq.admitted_before ? seq.admitted : now) - seq.submitted));
      if (piece.output_tokens > 0) {
        piece.prefill_seconds = static_cast<float>(seconds(seq.first_token - seq.admitted));
        piece.decode_seconds = static_cast<float>(seconds(now - seq.first_token));
        stats.decode_seconds += seconds(now - seq.first_token);
      }
    }
    stats.requests_finished += piece.finish == FinishReason::stop || piece.finish == FinishReason::length;
    stats.requests_failed += piece.finish == FinishReason::error;
    stats.requests_cancelled += piece.finish == FinishReason::cancelled;
  }
  bool refused = false;
  try {
    if (seq.sink) seq.sink(std::move(piece));
  } catch (const std::exception& e) {
    spdlog::error("a request's sink threw, the request is cancelled: {}", e.what());
    refused = true;
  }
  if (!last && !refused) return;
  if (!last) {
    seq.sink = nullptr;
    return send(seq, {.finish = FinishReason::cancelled});
  }
  live.erase(seq.ticket);
  const std::lock_guard lock(mutex);
  if (--unfinished == 0) idle.notify_all();
}

// The content of its blocks is suspect: none of them is reused.
void EngineLoop::Impl::fail_sequence(Sequence& seq, Error error, OutputPiece piece) {
  pool.forget(seq.table);
  piece.tokens.clear();
  piece.text.clear();
  piece.logprobs.clear();
  piece.finish = FinishReason::error;
  piece.error = std::move(error);
  send(seq, std::move(piece));
}

void EngineLoop::Impl::publish() {
  const std::lock_guard lock(mutex);
  stats.running = static_cast<int32_t>(queues.running.size());
  stats.waiting = static_cast<int32_t>(queues.waiting.size());
  stats.blocks_total = pool.options().num_blocks;
  stats.blocks_used = pool.used_blocks();
  stats.blocks_cached = pool.cached_blocks();
}

}  // namespace pinion
