// A model in the process: an engine on a device, its loop, and the one queue through which pieces of output leave the
// engine's thread. Nothing here knows Python: the sinks never need its lock, and whoever waits has released it.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "options.h"

namespace pinion::python {

struct Event {
  uint64_t sequence = 0;  // as submit() was given
  OutputPiece piece;
};

// Thread-safe. After a fork the child has memory but no threads: there every call is refused, and nothing is freed.
class LoadedEngine {
 public:
  static Result<std::unique_ptr<LoadedEngine>> load(const Options& options);
  ~LoadedEngine();

  // `sequence` names the events that come of it; the last has finish != none. Errors: as EngineLoop::submit. Returns
  // the ticket for cancel().
  Result<uint64_t> submit(uint64_t sequence, std::vector<int32_t> prompt, const SamplingParams& sampling);
  Status cancel(uint64_t ticket);
  // Waits for events. None: the engine was closed, and every event taken.
  Result<std::vector<Event>> take();
  // Cancels what runs, ends the threads and frees the model. What was submitted still gets its last events. May be
  // called again.
  void close();

  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens) const;
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special_tokens) const;
  // Messages, tools (null: none) and the template's arguments as JSON; the prompt's ids.
  Result<std::vector<int32_t>> chat(std::string_view messages, std::string_view tools, std::string_view arguments,
                                    bool add_generation_prompt) const;
  Result<SamplingParams> default_sampling() const;  // generation_config.json's
  Result<LoopStats> stats() const;
  Result<std::string> name() const;
  Result<int32_t> max_seq_len() const;

 private:
  struct Running;
  struct Queue;
  LoadedEngine() = default;
  Result<std::shared_ptr<Running>> running() const;  // errors: closed, or another process
  Result<const Tokenizer*> tokenizer(const Running& running) const;

  pid_t process_ = 0;
  mutable std::mutex mutex_;
  std::shared_ptr<Running> running_;  // null: closed
  std::shared_ptr<Queue> queue_;
};

}  // namespace pinion::python
