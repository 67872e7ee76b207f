// The engine loop's inside, shared by its two halves: engine_loop.cc (any thread) and engine_steps.cc (the engine
// thread).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "runtime/device_draws.h"
#include "runtime/engine_loop.h"
#include "runtime/executor.h"
#include "runtime/scheduler.h"

namespace pinion {

struct EngineLoop::Impl {
  Impl(Executor& e, TextDecoderFactory t, LoopOptions o);

  // Any thread.
  Status validate_request(const Request& request) const;
  std::unique_ptr<Sequence> make_sequence(Request request, OutputSink sink) const;

  // The engine thread.
  void run();
  void turn(std::span<Sequence* const> arrived, const std::vector<uint64_t>& cancelled);
  void step();
  void take(const Plan& plan);  // commits it and counts what it admits
  // The copies that the plan's pages need, and those to the host that later ones would; false: the step has failed.
  bool move_blocks(const Plan& plan);
  const Batch& batch_of(const Plan& plan);              // `batch`, whose memory each step takes again
  void run_whole(const Plan& plan);                     // and choose tokens on the host
  void issue(Plan plan, const StepSampling& sampling);  // and go on planning
  void collect();                                       // the oldest issued step
  void abandon_steps();                                 // at the end: nothing runs any more
  Status read_token(Sequence& seq, int32_t token, std::span<const LogprobEntry> logprobs, OutputPiece& piece);
  void fail_all(std::span<const PlanItem> items, const std::string& why);
  Status read_rows(const PlanItem& item, std::span<const float> rows, OutputPiece& piece);
  Status pool_rows(const PlanItem& item, std::span<const float> hidden, OutputPiece& piece);
  void append(Sequence& seq, const Sampled& sampled, OutputPiece& piece);
  void send(Sequence& seq, OutputPiece&& piece);
  void fail_sequence(Sequence& seq, Error error, OutputPiece piece = {});
  void publish();

  Executor& executor;
  const TextDecoderFactory make_text;
  const LoopOptions options;
  BlockPool pool;
  Scheduler scheduler;
  Sampler sampler;
  HistoryRoom history_room;  // outlives the sequences
  const std::vector<int32_t> eos;

  // The engine thread's own; `turn_mutex` is held while it works, so that integrity() can look in between.
  mutable std::mutex turn_mutex;
  std::map<uint64_t, std::unique_ptr<Sequence>> live;
  Queues queues;
  uint64_t steps = 0;
  StepWork work;  // of the last step taken
  Batch batch;
  uint64_t uncounted_tokens = 0;  // handed out and not in `stats` yet

  // Steps that the device was given and that were not collected: one, and two for the moment before the older one is.
  struct Flight {
    uint64_t step = 0;
    std::vector<PlanItem> items;
    std::vector<int32_t> preemptions;  // of the items' sequences when it was issued
  };
  std::deque<Flight> flights;
  std::vector<std::unique_ptr<Sequence>> leaving;  // ended, while a flight holds them

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

}  // namespace pinion
