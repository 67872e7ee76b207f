// What callers do from any thread: check, queue, cancel, wait, look. Nothing here touches a sequence once it is queued.
#include "runtime/engine_loop.h"

#include <algorithm>
#include <iterator>
#include <random>
#include <utility>

#include "runtime/engine_loop_impl.h"
#include "text/detokenizer.h"

namespace pinion {

namespace {

constexpr size_t kMaxStopStrings = 64, kMaxStopBytes = 4096;  // bounds the search per token
constexpr size_t kTextContext = 8;                            // prompt tokens that the first characters may depend on

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
  if (o.prefix_reuse) p.host_slots = executor.options().host_blocks;
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

// Without those that the model has no logit for: they are never put out, and never masked.
std::vector<int32_t> known_ids(std::span<const int32_t> ids, int32_t vocab_size) {
  std::vector<int32_t> known;
  std::ranges::copy_if(ids, std::back_inserter(known), [&](int32_t id) { return id >= 0 && id < vocab_size; });
  return known;
}

}  // namespace

EngineLoop::Impl::Impl(Executor& e, TextDecoderFactory t, LoopOptions o)
    : executor(e),
      make_text(std::move(t)),
      options(in_force(e, o)),
      pool(pool_options(e, options)),
      scheduler(limits_of(e, options), pool),
      sampler(e.vocab_size()),
      history_room(e.sampling_room().history),
      eos(known_ids(e.eos_token_ids(), e.vocab_size())) {}

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
  if (request.pooling != Pooling::none && executor.hidden_size() == 0)
    return fail(Errc::unsupported, "this model gives no hidden states", "pooling", "embeddings need them");
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
  if (p.penalizes()) {
    for (const int32_t token : request.prompt) seq->history.add_prompt(token);
  }
  thread_local std::random_device device;  // making one asks the processor what it can: dear in a virtual machine
  seq->sampler.seed = p.seed ? *p.seed : uint64_t{device()} << 32 | device();
  seq->sampler.ending = p.stop_token_ids;
  if (!p.ignore_eos) seq->sampler.ending.insert(seq->sampler.ending.end(), eos.begin(), eos.end());
  seq->sampler.biases = p.logit_bias;
  std::ranges::stable_sort(seq->sampler.biases, {}, &std::pair<int32_t, float>::first);
  seq->root.cache_salt = request.cache_salt;
  if (make_text)
    seq->text = std::make_unique<OutputText>(make_text(request.prompt, p.skip_special_tokens), p.stop, p.include_stop);
  seq->submitted = Clock::now();
  if (request.pooling != Pooling::none) seq->max_len = seq->prompt_len;
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
    // Those for whom the next step has room do not count: a burst into an idle engine is no overload.
    const size_t waiting = m.inbox.size() + static_cast<size_t>(m.stats.waiting);
    const int32_t room = std::max(0, m.options.max_batch_size - m.stats.running);
    if (waiting >= static_cast<size_t>(m.options.max_queue) + static_cast<size_t>(room))
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

std::string EngineLoop::failure() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->dead;
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

}  // namespace pinion
