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

// The next rows of a step, or none where it has none of the kind.
std::span<const float> take_rows(std::span<const float>& rows, size_t size) {
  const auto out = rows.first(std::min(size, rows.size()));
  rows = rows.subspan(out.size());
  return out;
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
        return stop || !inbox.empty() || !cancels.empty() || !queues.running.empty() || !queues.waiting.empty() ||
               !flights.empty();
      });
      arrived = std::exchange(inbox, {});
      stats.waiting += static_cast<int32_t>(arrived.size());  // until publish() counts them: max_queue holds throughout
      cancelled = std::exchange(cancels, {});
      stopping = stop;
    }
    const std::lock_guard turn_lock(turn_mutex);
    const auto begin = Clock::now();
    const double waited = executor.waited_seconds();
    const uint64_t before = steps;
    std::vector<Sequence*> fresh;
    for (auto& seq : arrived) {
      fresh.push_back(seq.get());
      live.emplace(seq->ticket, std::move(seq));
    }
    if (stopping) {
      abandon_steps();
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
      abandon_steps();
      queues = {};
      while (!live.empty()) {
        live.begin()->second->table = {};
        send(*live.begin()->second,
             {.finish = FinishReason::error, .error = fail(Errc::internal, "the engine stopped", e.what())});
      }
    }
    publish();
    if (steps == before || !options.on_step) continue;
    work.seconds = seconds(Clock::now() - begin) - (executor.waited_seconds() - waited);
    options.on_step(work);
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
  const auto begin = Clock::now();
  if (!queues.running.empty() || !queues.waiting.empty()) {
    step();
  } else if (!flights.empty()) {
    collect();
  } else {
    return;
  }
  const std::lock_guard lock(mutex);
  stats.busy_seconds += seconds(Clock::now() - begin);
}

// Where the device chooses tokens, the next step is planned and issued while one runs: its tokens count as there,
// though nobody knows them yet. What needs them on the host waits until the device has caught up.
void EngineLoop::Impl::step() {
  Plan plan = scheduler.plan(queues);
  const bool nothing = plan.items.empty() && plan.preempted.empty();
  const auto draws = nothing ? std::nullopt : device_draws(plan, executor, history_room);
  if (!flights.empty() && !draws) return collect();
  check(!nothing, "nothing can run, and requests wait");
  take(plan);
  if (plan.items.empty() || !move_blocks(plan)) return;
  if (!draws) return run_whole(plan);
  issue(std::move(plan), draws->sampling());
  if (flights.size() > 1) collect();
}

void EngineLoop::Impl::take(const Plan& plan) {
  const auto begin = Clock::now();
  scheduler.commit(plan, queues);
  ++steps;
  work = {.sequences = static_cast<int32_t>(plan.items.size()),
          .decodes = std::ranges::all_of(plan.items, [](const PlanItem& item) { return item.tokens == 1; })};
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
}

bool EngineLoop::Impl::move_blocks(const Plan& plan) {
  if (pool.options().host_slots == 0) return true;
  const auto bytes = [&](std::span<const BlockCopy> copies, bool to_host) {
    uint64_t sum = 0;
    for (const BlockCopy& c : copies)
      if (c.to_host == to_host) sum += executor.kv_groups()[c.group].block_bytes;
    return sum;
  };
  try {
    const BlockMoves now = pool.moves();
    if (!now.copies.empty() || now.awaited) executor.move_blocks(now.copies, now.awaited);
    // As many pages as a step can take: when the next one does, these copies have had this one's time.
    const int32_t pages = options.max_num_tokens / pool.options().block_size + options.max_batch_size;
    const auto ahead = pool.copies_ahead(pages * pool.groups());
    if (!ahead.empty()) executor.move_blocks(ahead, false);
    const std::lock_guard lock(mutex);
    stats.bytes_to_host += bytes(now.copies, true) + bytes(ahead, true);
    stats.bytes_from_host += bytes(now.copies, false);
    return true;
  } catch (const std::exception& e) {
    pool.forget_host();
    fail_all(plan.items, e.what());
    return false;
  }
}

const Batch& EngineLoop::Impl::batch_of(const Plan& plan) {
  bool tokens = false;  // any is to be chosen
  batch.hidden = false;
  batch.seqs.resize(plan.items.size());
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const PlanItem& item = plan.items[i];
    const Sequence& seq = *item.seq;
    if (item.outputs > 0) (seq.pools() ? batch.hidden : tokens) = true;
    BatchSeq& b = batch.seqs[i];
    b.tokens = std::span(seq.tokens).subspan(item.past, item.tokens);
    b.past = item.past;
    b.rope_length = seq.prompt_len;
    b.outputs = item.outputs;
    b.earlier_row = seq.unknown > 0 && item.past + item.tokens == seq.length() ? seq.row : -1;
    b.blocks.assign(seq.table.blocks.begin(), seq.table.blocks.end());
  }
  batch.logits = tokens || !batch.hidden;
  return batch;
}

void EngineLoop::Impl::run_whole(const Plan& plan) {
  const auto vocab = static_cast<size_t>(executor.vocab_size()), width = static_cast<size_t>(executor.hidden_size());
  std::span<const float> logits, hidden;
  try {
    size_t rows = 0;
    for (const PlanItem& item : plan.items) rows += item.outputs;
    logits = executor.forward(batch_of(plan));
    if (batch.hidden) hidden = executor.hidden();
    check(logits.size() == (batch.logits ? rows * vocab : 0), "the executor returned another number of logits");
    check(hidden.size() == (batch.hidden ? rows * width : 0), "the executor returned another number of hidden states");
  } catch (const std::exception& e) {
    return fail_all(plan.items, e.what());
  }
  for (const PlanItem& item : plan.items) {
    Sequence& seq = *item.seq;
    scheduler.issued(item);
    OutputPiece piece;
    const auto own_logits = take_rows(logits, item.outputs * vocab),
               own_hidden = take_rows(hidden, item.outputs * width);
    const Status read = seq.pools() ? pool_rows(item, own_hidden, piece) : read_rows(item, own_logits, piece);
    if (!read) {
      fail_sequence(seq, read.error(), std::move(piece));
      continue;
    }
    scheduler.retire(item);
    if (!piece.tokens.empty() || piece.finish != FinishReason::none) send(seq, std::move(piece));
  }
}

void EngineLoop::Impl::issue(Plan plan, const StepSampling& sampling) {
  try {
    executor.issue(batch_of(plan), sampling);
  } catch (const std::exception& e) {
    return fail_all(plan.items, e.what());
  }
  Flight& flight = flights.emplace_back(Flight{.step = steps, .items = std::move(plan.items), .preemptions = {}});
  flight.preemptions.reserve(flight.items.size());
  int32_t row = 0;
  for (const PlanItem& item : flight.items) {
    Sequence& seq = *item.seq;
    scheduler.issued(item);
    flight.preemptions.push_back(seq.preemptions);
    seq.last_step = steps;
    if (item.outputs == 0) continue;
    seq.row = row++;
    seq.tokens.push_back(0);
    ++seq.unknown;
    if (seq.history_range.size() > 0) seq.counted = seq.length() - seq.prompt_len, ++seq.history_entries;
  }
}

void EngineLoop::Impl::collect() {
  const Flight flight = std::move(flights.front());
  flights.pop_front();
  std::span<const int32_t> tokens;
  try {
    tokens = executor.collect();
    const auto rows = std::ranges::count_if(flight.items, [](const PlanItem& item) { return item.outputs > 0; });
    check(std::ssize(tokens) == rows, "the executor returned another number of tokens");
  } catch (const std::exception& e) {
    fail_all(flight.items, e.what());
    std::erase_if(leaving, [&](const auto& seq) { return seq->last_step <= flight.step; });
    return;
  }
  // Sequences lie all over memory, and caches forget them while the device computes: asked for together, they arrive
  // together.
  for (const PlanItem& item : flight.items) item.seq->prefetch();
  for (const PlanItem& item : flight.items) __builtin_prefetch(item.seq->table.blocks.data());
  for (const PlanItem& item : flight.items) item.seq->prefetch_parts();
  size_t next_row = 0;
  for (size_t i = 0; i < flight.items.size(); ++i) {
    const PlanItem& item = flight.items[i];
    Sequence& seq = *item.seq;
    const bool drawn = item.outputs > 0;
    const size_t row = next_row;
    next_row += drawn ? 1 : 0;
    if (seq.ended) continue;
    OutputPiece piece;
    if (const Status read = drawn ? read_token(seq, tokens[row], executor.logprobs(row), piece) : Status{}; !read) {
      fail_sequence(seq, read.error(), std::move(piece));
      continue;
    }
    // Preempted since: its pages have gone, its token counts all the same.
    if (seq.preemptions == flight.preemptions[i]) scheduler.retire(item);
    if (!piece.tokens.empty()) send(seq, std::move(piece));
  }
  std::erase_if(leaving, [&](const auto& seq) { return seq->last_step <= flight.step; });
}

void EngineLoop::Impl::abandon_steps() {
  for (; !flights.empty(); flights.pop_front()) {
    try {
      (void)executor.collect();
    } catch (const std::exception& e) {
      spdlog::error("a step failed: {}", e.what());
    }
  }
}

void EngineLoop::Impl::fail_all(std::span<const PlanItem> items, const std::string& why) {
  spdlog::error("a step failed: {}", why);
  for (const PlanItem& item : items) {
    if (item.seq->ended) continue;
    fail_sequence(*item.seq, fail(Errc::internal, "the device failed during this request", why, "try again"));
  }
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
    PINION_TRY(const Sampled sampled, sampler.sample(row, seq.request.sampling, seq.sampler, seq.whole_history(),
                                                     seq.tokens, seq.output_tokens()));
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

Status EngineLoop::Impl::read_token(Sequence& seq, int32_t token, std::span<const LogprobEntry> logprobs,
                                    OutputPiece& piece) {
  if (token == kNotFinite) return not_finite_error();
  if (token == kNoneLeft) return none_left_error();
  Sampled sampled{.token = token, .logprob = {}};
  if (const int32_t top = seq.request.sampling.logprobs; top >= 0) {
    const auto n = static_cast<size_t>(std::min(top, executor.vocab_size()));
    check(logprobs.size() > n, "the executor returned no logprobs");
    sampled.logprob = {.token = token, .logprob = logprobs[0].logprob, .rank = logprobs[0].token, .top = {}};
    for (const LogprobEntry& e : logprobs.subspan(1, n)) sampled.logprob.top.emplace_back(e.token, e.logprob);
  }
  append(seq, sampled, piece);
  return {};
}

void EngineLoop::Impl::append(Sequence& seq, const Sampled& sampled, OutputPiece& piece) {
  const SamplingParams& p = seq.request.sampling;
  const int32_t token = sampled.token;
  if (seq.output_tokens() == 0) {
    seq.first_token = Clock::now();
    piece.prompt_logprobs = std::exchange(seq.prompt_entries, {});
  }
  if (seq.unknown > 0) {
    seq.tokens[seq.known()] = token, --seq.unknown;
  } else {
    seq.tokens.push_back(token);
  }
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
  const bool full = seq.known() >= seq.max_len;
  if (seq.text && (full || piece.finish == FinishReason::stop)) piece.text += seq.text->finish();
  if (seq.text && seq.text->stopped()) {
    piece.finish = FinishReason::stop;
    piece.stop_reason = *seq.text->stopped();
  } else if (full && piece.finish == FinishReason::none) {
    piece.finish = FinishReason::length;
  }
}

// The one way out. A finished sequence gives its blocks back first, and is gone when this returns.
void EngineLoop::Impl::send(Sequence& seq, OutputPiece&& piece) {
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
  uncounted_tokens += piece.tokens.size();
  const bool first = !piece.tokens.empty() && piece.output_tokens == static_cast<int32_t>(piece.tokens.size());
  if (first || last) {  // of the others there are hundreds in a step: publish() counts their tokens
    const std::lock_guard lock(mutex);
    stats.output_tokens += std::exchange(uncounted_tokens, 0);
    const auto now = Clock::now();
    if (first) stats.prefill_seconds += seconds(seq.first_token - seq.admitted);
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
  seq.ended = true;
  const auto it = live.find(seq.ticket);
  if (!flights.empty() && flights.back().step <= seq.last_step) leaving.push_back(std::move(it->second));
  live.erase(it);
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
  stats.output_tokens += std::exchange(uncounted_tokens, 0);
  stats.running = static_cast<int32_t>(queues.running.size());
  stats.waiting = static_cast<int32_t>(queues.waiting.size());
  stats.blocks_total = pool.options().num_blocks;
  stats.blocks_used = pool.used_blocks();
  stats.blocks_cached = pool.cached_blocks();
  stats.host_blocks_total = pool.options().host_slots;
  stats.host_blocks_used = pool.host_blocks();
  stats.host_hit_blocks = pool.host_hits();
}

}  // namespace pinion
