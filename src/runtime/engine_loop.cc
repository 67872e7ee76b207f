#include "runtime/engine_loop.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "runtime/executor.h"
#include "runtime/scheduler.h"
#include "text/detokenizer.h"

namespace pinion {

namespace {

constexpr size_t kMaxStopStrings = 64, kMaxStopBytes = 4096;  // bounds the search per token
constexpr size_t kTextContext = 8;                            // prompt tokens that the first characters may depend on

double seconds(Clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

class DetokenizerText : public TextDecoder {
 public:
  DetokenizerText(const Tokenizer& tokenizer, bool skip_special_tokens, std::span<const int32_t> prompt)
      : detokenizer_(tokenizer, skip_special_tokens, prompt.last(std::min(prompt.size(), kTextContext))) {}
  std::string push(int32_t token) override { return detokenizer_.push(token); }
  std::string finish() override { return detokenizer_.finish(); }

 private:
  Detokenizer detokenizer_;
};

TextDecoderFactory text_of(const Tokenizer* tokenizer) {
  if (!tokenizer) return {};
  return [tokenizer](std::span<const int32_t> prompt, bool skip) {
    return std::make_unique<DetokenizerText>(*tokenizer, skip, prompt);
  };
}

LoopOptions in_force(const Executor& executor, LoopOptions o) {
  const ExecutorOptions& e = executor.options();
  o.max_batch_size = std::max(1, std::min(o.max_batch_size, e.max_batch_size));
  o.max_num_tokens = std::max(1, std::min(o.max_num_tokens, e.max_num_tokens));
  o.chunk_tokens = std::clamp(o.chunk_tokens, 1, o.max_num_tokens);
  for (const int32_t limit : {e.max_seq_len, executor.context_length()})
    if (limit > 0) o.max_seq_len = o.max_seq_len > 0 ? std::min(o.max_seq_len, limit) : limit;
  return o;
}

BlockPoolOptions pool_options(const Executor& executor, const LoopOptions& o) {
  BlockPoolOptions p{.num_blocks = executor.options().num_blocks, .block_size = executor.block_size()};
  for (const KvGroupInfo& group : executor.kv_groups()) p.windows.push_back(group.window);
  p.prefix_reuse = o.prefix_reuse;
  return p;
}

SchedulerLimits limits_of(const Executor& executor, const LoopOptions& o) {
  const int32_t rows = executor.options().max_outputs;
  return {.max_batch_size = o.max_batch_size,
          .max_num_tokens = o.max_num_tokens,
          .max_outputs = rows > 0 ? rows : o.max_batch_size,
          .chunk_tokens = o.chunk_tokens,
          .policy = o.policy};
}

bool contains(std::span<const int32_t> ids, int32_t id) {
  return std::ranges::find(ids, id) != ids.end();
}

}  // namespace

struct EngineLoop::Impl {
  Impl(Executor& e, TextDecoderFactory t, LoopOptions o)
      : executor(e),
        make_text(std::move(t)),
        options(in_force(e, o)),
        pool(pool_options(e, options)),
        scheduler(limits_of(e, options), pool),
        sampler(e.vocab_size()),
        eos(e.eos_token_ids().begin(), e.eos_token_ids().end()) {}

  // Any thread.
  Status validate_request(const Request& request) const;
  std::unique_ptr<Sequence> make_sequence(Request request, OutputSink sink) const;

  // The engine thread.
  void run();
  void turn(std::span<Sequence* const> arrived, const std::vector<uint64_t>& cancelled);
  void step();
  void run_batch(const Plan& plan, std::span<const float>& logits);
  Status read_rows(const PlanItem& item, std::span<const float> rows, OutputPiece& piece);
  void append(Sequence& seq, const Sampled& sampled, OutputPiece& piece);
  void send(Sequence& seq, OutputPiece piece);
  void fail_sequence(Sequence& seq, Error error, OutputPiece piece = {});
  void publish();

  Executor& executor;
  const TextDecoderFactory make_text;
  const LoopOptions options;
  BlockPool pool;
  Scheduler scheduler;
  Sampler sampler;
  const std::vector<int32_t> eos;

  // The engine thread's own; `turn_mutex` is held while it works, so that integrity() can look in between.
  mutable std::mutex turn_mutex;
  std::map<uint64_t, std::unique_ptr<Sequence>> live;
  Queues queues;
  uint64_t steps = 0;

  // Shared, under `mutex`.
  mutable std::mutex mutex;
  std::condition_variable wake, idle;
  std::vector<std::unique_ptr<Sequence>> inbox;
  std::vector<uint64_t> cancels;
  uint64_t next_ticket = 1;
  size_t unfinished = 0;
  bool stop = false, draining = false;
  std::string dead;  // an internal error ended the loop: what it said
  LoopStats stats;

  std::thread thread;  // last: it uses all the above
};

// ---- any thread
// ------------------------------------------------------------------------------------------------------

Status EngineLoop::Impl::validate_request(const Request& request) const {
  const int32_t vocab = executor.vocab_size();
  if (request.prompt.empty())
    return fail(Errc::invalid_argument, "the prompt is empty", "prompt", "give at least one token");
  if (request.prompt.size() >= static_cast<size_t>(options.max_seq_len))
    return fail(Errc::invalid_argument,
                "the prompt has " + std::to_string(request.prompt.size()) + " tokens and leaves no room for output",
                "max_seq_len is " + std::to_string(options.max_seq_len), "shorten the prompt or raise max_seq_len");
  for (const int32_t id : request.prompt)
    if (id < 0 || id >= vocab)
      return fail(Errc::invalid_argument, "token id " + std::to_string(id) + " is outside the vocabulary", "prompt",
                  "use ids from 0 to " + std::to_string(vocab - 1));
  const SamplingParams& p = request.sampling;
  PINION_OK(validate(p, vocab));
  if (!p.stop.empty() && !make_text)
    return fail(Errc::invalid_argument, "stop strings need a tokenizer", "stop", "use stop_token_ids");
  if (p.stop.size() > kMaxStopStrings)
    return fail(Errc::invalid_argument, "more than " + std::to_string(kMaxStopStrings) + " stop strings", "stop", {});
  for (const std::string& stop : p.stop)
    if (stop.empty() || stop.size() > kMaxStopBytes)
      return fail(Errc::invalid_argument, "a stop string has " + std::to_string(stop.size()) + " bytes", "stop",
                  "use 1 to " + std::to_string(kMaxStopBytes));
  return {};
}

std::unique_ptr<Sequence> EngineLoop::Impl::make_sequence(Request request, OutputSink sink) const {
  auto seq = std::make_unique<Sequence>();
  SamplingParams& p = request.sampling;
  seq->sink = std::move(sink);
  seq->tokens = request.prompt;
  seq->prompt_len = seq->length();
  seq->max_len = static_cast<int32_t>(std::min<int64_t>(int64_t{seq->prompt_len} + p.max_tokens, options.max_seq_len));
  seq->prompt_logprobs = p.prompt_logprobs;
  if (p.prompt_logprobs >= 0) seq->prompt_entries.resize(1);
  for (const int32_t token : request.prompt) seq->history.add_prompt(token);
  std::random_device device;
  seq->sampler.seed = p.seed ? *p.seed : uint64_t{device()} << 32 | device();
  seq->sampler.ending = p.stop_token_ids;
  if (!p.ignore_eos) seq->sampler.ending.insert(seq->sampler.ending.end(), eos.begin(), eos.end());
  seq->root.cache_salt = request.cache_salt;
  if (make_text)
    seq->text = std::make_unique<OutputText>(make_text(request.prompt, p.skip_special_tokens), p.stop, p.include_stop);
  seq->submitted = Clock::now();
  seq->request = std::move(request);
  return seq;
}

EngineLoop::EngineLoop(Executor& executor, TextDecoderFactory text, LoopOptions options)
    : impl_(std::make_unique<Impl>(executor, std::move(text), options)) {
  impl_->publish();
  impl_->thread = std::thread([this] { impl_->run(); });
}

EngineLoop::EngineLoop(Executor& executor, const Tokenizer* tokenizer, LoopOptions options)
    : EngineLoop(executor, text_of(tokenizer), options) {}

EngineLoop::~EngineLoop() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->wake.notify_all();
  impl_->thread.join();
}

Result<uint64_t> EngineLoop::submit(Request request, OutputSink sink) {
  Impl& m = *impl_;
  auto refuse = [&](Error error) -> Result<uint64_t> {
    const std::lock_guard lock(m.mutex);
    ++m.stats.requests_rejected;
    return error;
  };
  if (auto valid = m.validate_request(request); !valid) return refuse(valid.error());
  auto seq = m.make_sequence(std::move(request), std::move(sink));
  if (auto fits = m.scheduler.fits(seq->prompt_len, seq->max_len); !fits) return refuse(fits.error());
  {
    const std::lock_guard lock(m.mutex);
    const auto refuse_now = [&](Error error) {
      ++m.stats.requests_rejected;
      return error;
    };
    if (!m.dead.empty())
      return refuse_now(fail(Errc::internal, "the engine has stopped", m.dead, "restart it; the log says more"));
    if (m.stop || m.draining)
      return refuse_now(fail(Errc::exhausted, "the engine is shutting down", {}, "ask another replica"));
    const size_t waiting = m.inbox.size() + static_cast<size_t>(m.stats.waiting);
    if (waiting >= static_cast<size_t>(m.options.max_queue))
      return refuse_now(fail(Errc::exhausted, "the queue is full: " + std::to_string(waiting) + " requests wait",
                             "max_queue is " + std::to_string(m.options.max_queue), "try again later"));
    seq->ticket = m.next_ticket++;
    const uint64_t ticket = seq->ticket;
    m.inbox.push_back(std::move(seq));
    ++m.unfinished;
    m.wake.notify_one();
    return ticket;
  }
}

void EngineLoop::cancel(uint64_t ticket) {
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->unfinished == 0 || ticket >= impl_->next_ticket) return;
    impl_->cancels.push_back(ticket);
  }
  impl_->wake.notify_one();
}

void EngineLoop::drain() {
  std::unique_lock lock(impl_->mutex);
  impl_->draining = true;
  impl_->idle.wait(lock, [&] { return impl_->unfinished == 0; });
}

LoopStats EngineLoop::stats() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->stats;
}

const LoopOptions& EngineLoop::options() const {
  return impl_->options;
}

std::string EngineLoop::integrity() const {
  const std::lock_guard lock(impl_->turn_mutex);
  std::vector<const KvTable*> tables;
  for (const auto& [ticket, seq] : impl_->live) tables.push_back(&seq->table);
  return impl_->pool.integrity(tables);
}

// ---- the engine thread
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

  std::span<const float> logits;
  try {
    run_batch(plan, logits);
  } catch (const std::exception& e) {
    spdlog::error("a step failed: {}", e.what());
    for (const PlanItem& item : plan.items)
      fail_sequence(*item.seq, fail(Errc::internal, "the device failed during this request", e.what(), "try again"));
    return;
  }

  const auto vocab = static_cast<size_t>(executor.vocab_size());
  for (const PlanItem& item : plan.items) {
    Sequence& seq = *item.seq;
    const auto rows = logits.first(item.outputs * vocab);
    logits = logits.subspan(rows.size());
    OutputPiece piece;
    if (auto read = read_rows(item, rows, piece); !read) {
      fail_sequence(seq, read.error(), std::move(piece));
      continue;
    }
    scheduler.retire(item);
    if (!piece.tokens.empty()) send(seq, std::move(piece));
  }
  const std::lock_guard lock(mutex);
  stats.busy_seconds += seconds(Clock::now() - begin);
}

void EngineLoop::Impl::run_batch(const Plan& plan, std::span<const float>& logits) {
  Batch batch;
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
  }
  logits = executor.forward(batch);
  check(logits.size() == rows * executor.vocab_size(), "the executor returned another number of logits");
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
    if (last && piece.output_tokens > 0) stats.decode_seconds += seconds(now - seq.first_token);
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
