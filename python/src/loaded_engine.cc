#include "loaded_engine.h"

#include <unistd.h>

namespace pinion::python {

struct LoadedEngine::Running {
  OpenModel model;
  std::unique_ptr<EngineLoop> loop;
};

struct LoadedEngine::Queue {
  std::mutex mutex;
  std::condition_variable ready;
  std::vector<Event> events;
  bool closed = false;
};

Result<std::unique_ptr<LoadedEngine>> LoadedEngine::load(const Options& options) {
  PINION_OK(check(options));
  auto running = std::make_shared<Running>();
  PINION_TRY(running->model, open_model(options.model, {.max_batch_size = 64, .max_num_tokens = 2048}));
  const OpenModel& m = running->model;
  running->loop =
      std::make_unique<EngineLoop>(*m.executor, m.tokenizer.get(), loop_options(options, m.executor->options()));
  std::unique_ptr<LoadedEngine> out(new LoadedEngine);
  out->process_ = ::getpid();
  out->running_ = std::move(running);
  out->queue_ = std::make_shared<Queue>();
  return out;
}

LoadedEngine::~LoadedEngine() {
  if (process_ == ::getpid()) {
    close();
    return;
  }
  // A forked child: the threads that a destructor would wait for are the parent's. The system takes the memory back.
  static_cast<void>(new std::shared_ptr<Running>(std::move(running_)));
  static_cast<void>(new std::shared_ptr<Queue>(std::move(queue_)));
}

Result<std::shared_ptr<LoadedEngine::Running>> LoadedEngine::running() const {
  if (process_ != ::getpid()) {
    return fail(Errc::unsupported, "the model was loaded before this process was forked", "pinion.LLM",
                "load it in the process that uses it, or start processes with multiprocessing's \"spawn\"");
  }
  const std::lock_guard lock(mutex_);
  if (!running_) return fail(Errc::cancelled, "the model was shut down", "pinion.LLM", "make a new LLM");
  return running_;
}

Result<uint64_t> LoadedEngine::submit(uint64_t sequence, std::vector<int32_t> prompt, const SamplingParams& sampling) {
  PINION_TRY(const auto r, running());
  const auto length = static_cast<int64_t>(prompt.size());
  const int32_t most = r->loop->options().max_seq_len;
  if (length + sampling.max_tokens > most) {  // the loop would cut the answer short; here that is a mistake
    return fail(Errc::invalid_argument,
                "the prompt has " + std::to_string(length) + " tokens and " + std::to_string(sampling.max_tokens) +
                    " are asked for, the limit is " + std::to_string(most) + " for both together",
                "max_tokens", "ask for fewer, shorten the prompt, or raise max_seq_len");
  }
  Request request{.id = std::to_string(sequence), .prompt = std::move(prompt), .sampling = sampling, .cache_salt = {}};
  return r->loop->submit(std::move(request), [queue = queue_, sequence](OutputPiece piece) {
    const std::lock_guard lock(queue->mutex);
    queue->events.push_back({sequence, std::move(piece)});
    if (queue->events.size() == 1) queue->ready.notify_one();
  });
}

Status LoadedEngine::cancel(uint64_t ticket) {
  PINION_TRY(const auto r, running());
  r->loop->cancel(ticket);
  return {};
}

Result<std::vector<Event>> LoadedEngine::take() {
  if (process_ != ::getpid()) return running().error();
  std::unique_lock lock(queue_->mutex);
  queue_->ready.wait(lock, [&] { return queue_->closed || !queue_->events.empty(); });
  return std::exchange(queue_->events, {});
}

void LoadedEngine::close() {
  if (process_ != ::getpid()) return;
  std::shared_ptr<Running> last;
  {
    const std::lock_guard lock(mutex_);
    last = std::exchange(running_, nullptr);
  }
  if (!last) return;
  // Another thread may hold it for the moment of a call; no call waits for the loop, so this does not take long.
  while (last.use_count() > 1) ::usleep(100);
  last.reset();  // the loop's last pieces come now
  const std::lock_guard lock(queue_->mutex);
  queue_->closed = true;
  queue_->ready.notify_all();
}

Result<const Tokenizer*> LoadedEngine::tokenizer(const Running& r) const {
  if (r.model.tokenizer) return r.model.tokenizer.get();
  return fail(Errc::invalid_argument, "the model has no tokenizer files", r.model.engine->dir().string(),
              "give token ids, or their directory with tokenizer=");
}

Result<std::vector<int32_t>> LoadedEngine::encode(std::string_view text, bool add_special_tokens) const {
  PINION_TRY(const auto r, running());
  PINION_TRY(const Tokenizer* t, tokenizer(*r));
  return t->encode(text, add_special_tokens);
}

Result<std::string> LoadedEngine::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  PINION_TRY(const auto r, running());
  PINION_TRY(const Tokenizer* t, tokenizer(*r));
  return t->decode(ids, skip_special_tokens);
}

Result<std::vector<int32_t>> LoadedEngine::chat(std::string_view messages, std::string_view tools,
                                                std::string_view arguments, bool add_generation_prompt) const {
  PINION_TRY(const auto r, running());
  PINION_TRY(const Tokenizer* t, tokenizer(*r));
  if (!r->model.chat_template) {
    return fail(Errc::invalid_argument, "the model has no chat template", r->model.engine->dir().string(),
                "use generate() with the prompt as the model expects it");
  }
  ChatInput input;
  input.add_generation_prompt = add_generation_prompt;
  PINION_TRY(input.messages, parse_ordered_json(messages, "messages"));
  PINION_TRY(input.tools, parse_ordered_json(tools, "tools"));
  PINION_TRY(input.extra, parse_ordered_json(arguments, "chat_template_kwargs"));
  PINION_TRY(const std::string text, r->model.chat_template->render(input));
  return t->encode(text, false);
}

Result<SamplingParams> LoadedEngine::default_sampling() const {
  PINION_TRY(const auto r, running());
  return pinion::default_sampling(r->model.engine->dir(), false);
}

Result<LoopStats> LoadedEngine::stats() const {
  PINION_TRY(const auto r, running());
  return r->loop->stats();
}

Result<std::string> LoadedEngine::name() const {
  PINION_TRY(const auto r, running());
  return r->model.engine->manifest().model_name;
}

Result<int32_t> LoadedEngine::max_seq_len() const {
  PINION_TRY(const auto r, running());
  return r->loop->options().max_seq_len;
}

}  // namespace pinion::python
