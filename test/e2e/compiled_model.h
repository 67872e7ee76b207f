// For the tests of this folder: a checkpoint compiled into a scratch directory and opened, and requests sent through
// the engine loop and waited for.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/check.h"
#include "compiler/compiler.h"
#include "runtime/engine_executor.h"
#include "runtime/engine_loop.h"

namespace pinion {

// Fails the test that makes it (through check) when the model does not compile or load.
class CompiledModel {
 public:
  CompiledModel(const std::filesystem::path& checkpoint, const Backend& backend, BuildOptions build,
                ExecutorOptions limits)
      : dir_(std::filesystem::temp_directory_path() /
             ("pinion-e2e-" + std::to_string(::getpid()) + "-" + std::to_string(next_++))) {
    auto device = backend.open({});
    check(device.ok(), device ? "" : device.error().message);
    device_ = *std::move(device);
    auto source = checkpoint.extension() == ".gguf" ? Checkpoint::open_gguf(checkpoint) : Checkpoint::open(checkpoint);
    check(source.ok(), source ? "" : source.error().message);
    build.time_kernels = false;
    auto built = build_engine(*source, backend, *device_, build, dir_);
    check(built.ok(), built ? "" : built.error().message);
    auto engine = Engine::open(dir_);
    check(engine.ok(), engine ? "" : engine.error().message);
    engine_ = std::make_unique<Engine>(*std::move(engine));
    auto executor = EngineExecutor::create(*engine_, backend, *device_, limits);
    check(executor.ok(), executor ? "" : executor.error().message);
    executor_ = *std::move(executor);
  }
  ~CompiledModel() {
    std::error_code ignored;
    std::filesystem::remove_all(dir_, ignored);
  }
  CompiledModel(const CompiledModel&) = delete;
  CompiledModel& operator=(const CompiledModel&) = delete;

  const Engine& engine() const { return *engine_; }
  EngineExecutor& executor() const { return *executor_; }

 private:
  static inline std::atomic<int> next_ = 0;
  std::filesystem::path dir_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineExecutor> executor_;
};

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs, prompt_logprobs;
  std::vector<float> embedding;
  int32_t cached_tokens = 0;
  FinishReason finish = FinishReason::none;
  std::string error;
};

// Two answers agree to the last bit, in tokens and log-probabilities.
inline bool same(const Answer& a, const Answer& b) {
  const auto equal = [](const std::vector<TokenLogprob>& x, const std::vector<TokenLogprob>& y) {
    return std::ranges::equal(x, y, [](const TokenLogprob& p, const TokenLogprob& q) {
      return p.token == q.token && p.logprob == q.logprob && p.rank == q.rank && p.top == q.top;
    });
  };
  return a.tokens == b.tokens && equal(a.logprobs, b.logprobs) && equal(a.prompt_logprobs, b.prompt_logprobs);
}

// Submits all at once and waits for all; then nothing may run, and the pool must be whole.
inline std::vector<Answer> ask(EngineLoop& loop, const std::vector<Request>& requests) {
  std::mutex mutex;
  std::condition_variable done;
  std::vector<Answer> answers(requests.size());
  size_t left = requests.size();
  for (size_t i = 0; i < requests.size(); ++i) {
    auto ticket = loop.submit(requests[i], [&, i](OutputPiece piece) {
      const std::lock_guard lock(mutex);
      Answer& a = answers[i];
      a.tokens.insert(a.tokens.end(), piece.tokens.begin(), piece.tokens.end());
      std::ranges::move(piece.logprobs, std::back_inserter(a.logprobs));
      std::ranges::move(piece.prompt_logprobs, std::back_inserter(a.prompt_logprobs));
      if (!piece.embedding.empty()) a.embedding = std::move(piece.embedding);
      a.cached_tokens = piece.cached_tokens;
      a.finish = piece.finish;
      if (piece.error) a.error = piece.error->message;
      if (piece.finish != FinishReason::none && --left == 0) done.notify_one();
    });
    check(ticket.ok(), ticket ? "" : ticket.error().message);
  }
  std::unique_lock lock(mutex);
  done.wait(lock, [&] { return left == 0; });
  lock.unlock();
  const std::string wrong = loop.integrity();
  check(wrong.empty(), wrong);
  check(loop.stats().blocks_used == 0, "blocks are held though nothing runs");
  return answers;
}

}  // namespace pinion
