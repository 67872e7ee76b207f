// EngineLoop: one thread that owns Scheduler and BlockPool and turns requests into pieces of output, batch by batch.
// Rules: runtime/README.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "runtime/output_text.h"
#include "runtime/request.h"

namespace pinion {

class Executor;
class Tokenizer;

enum class SchedulerPolicy : uint8_t { guaranteed_no_evict, max_utilization };

// The engine thread's own work for one step: taking in what arrived, planning, binding, issuing, and handing out the
// tokens of the step that ended meanwhile. What it waited for the device is no part of it.
struct StepWork {
  double seconds = 0;
  int32_t sequences = 0;
  bool decodes = false;  // every sequence has one token: no prompts
};

struct LoopOptions {
  int32_t max_batch_size = 64;    // sequences in one step
  int32_t max_num_tokens = 2048;  // tokens in one step: long prompts are cut into chunks
  int32_t max_seq_len = 0;        // prompt and output; 0: the model's context
  int32_t max_queue = 512;        // requests beyond a full batch; one more is refused with Errc::exhausted
  int32_t chunk_tokens = 512;     // largest prefill chunk of one sequence while others decode
  SchedulerPolicy policy = SchedulerPolicy::max_utilization;
  bool prefix_reuse = true;
  std::function<void(const StepWork&)> on_step;  // called on the engine thread after each step; empty: nobody measures
};

struct LoopStats {  // a snapshot; counters since start
  uint64_t requests_finished = 0, requests_failed = 0, requests_cancelled = 0, requests_rejected = 0;
  uint64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0, steps = 0, preemptions = 0;
  int32_t running = 0, waiting = 0;
  int32_t blocks_total = 0, blocks_used = 0, blocks_cached = 0;  // used: held by live sequences
  int32_t host_blocks_total = 0, host_blocks_used = 0;           // of the host tier
  uint64_t host_hit_blocks = 0, bytes_to_host = 0, bytes_from_host = 0;
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0, busy_seconds = 0;
};

class EngineLoop {
 public:
  // The executor and the tokenizer (may be null: no text, stop strings are refused) are borrowed and outlive the loop.
  EngineLoop(Executor& executor, const Tokenizer* tokenizer, LoopOptions options);
  // With another source of text than a tokenizer; an empty factory: no text.
  EngineLoop(Executor& executor, TextDecoderFactory text, LoopOptions options);
  ~EngineLoop();  // cancels what is left

  // Checks the request against the limits (a request that can never fit is refused here) and queues it. Thread-safe.
  // Returns a ticket for cancel(). The sink is called on the engine thread until a piece with finish != none.
  Result<uint64_t> submit(Request request, OutputSink sink);
  void cancel(uint64_t ticket);  // thread-safe; blocks are freed within one step; the sink gets finish == cancelled
  void drain();                  // refuse new requests, return when the last one finished. Thread-safe.
  LoopStats stats() const;       // thread-safe
  std::string failure() const;   // why it has stopped for good (rule S8), empty while it serves. Thread-safe.
  const LoopOptions& options() const;  // with every limit as it is in force
  // Blocks are conserved, tables and reference counts agree: empty, or what is wrong. For tests, when idle.
  std::string integrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pinion
