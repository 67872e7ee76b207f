// Scheduler: which sequences run in the next step and how many tokens of each. plan() is a pure function of the queues
// and the pool; commit() alone carries it out. Rules: runtime/README.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "runtime/block_pool.h"
#include "runtime/engine_loop.h"
#include "runtime/sequence.h"

namespace pinion {

struct SchedulerLimits {
  int32_t max_batch_size = 64;
  int32_t max_num_tokens = 2048;
  int32_t max_outputs = 64;  // rows of logits in a step
  int32_t chunk_tokens = 512;
  SchedulerPolicy policy = SchedulerPolicy::max_utilization;
};

// Priority with aging: one level of priority is worth kAgingSteps steps of waiting, so that the order of two requests
// is settled when they arrive and a request is overtaken only by those that come within a bounded number of steps.
inline constexpr int64_t kAgingSteps = 128;
inline constexpr int32_t kMaxPriority = 100;  // beyond it priorities are clamped: it bounds the waiting
int64_t schedule_rank(int32_t priority, uint64_t arrival_step);

struct PlanItem {
  Sequence* seq = nullptr;
  int32_t past = 0;     // tokens in the cache before the step
  int32_t tokens = 0;   // new ones
  int32_t outputs = 0;  // rows of logits, for the last `outputs` tokens
  bool admitted = false;
};

struct Plan {
  std::vector<Sequence*> preempted;  // all their blocks go back, they wait again
  std::vector<PlanItem> items;       // what runs
};

struct Queues {
  std::vector<Sequence*> running;  // in the order of runs_before()
  std::vector<Sequence*> waiting;  // likewise
};

bool runs_before(const Sequence* a, const Sequence* b);
void enqueue(std::vector<Sequence*>& queue, Sequence* seq);  // keeps the order
void dequeue(std::vector<Sequence*>& queue, Sequence* seq);  // absent: nothing happens

class Scheduler {
 public:
  Scheduler(SchedulerLimits limits, BlockPool& pool);

  // Whether a request of this length can ever run: the error names the limit and the request's number.
  Status fits(int32_t prompt_len, int32_t max_len) const;
  Plan plan(const Queues& queues) const;
  void commit(const Plan& plan, Queues& queues);  // preempts, admits, takes the blocks
  void issued(const PlanItem& item);              // the planned tokens will be written before any later step runs
  void retire(const PlanItem& item);              // they are; steps retire in the order in which they were issued

 private:
  class Draft;
  void plan_decodes(const Queues& queues, Draft& draft, Plan& plan) const;
  void plan_prompts(const Queues& queues, Draft& draft, Plan& plan) const;
  void plan_admissions(const Queues& queues, Draft& draft, Plan& plan) const;
  bool worth_waiting_for(const PlanItem& prompt, const Sequence& seq, int32_t hit, int32_t limit) const;
  SchedulerLimits limits_;
  BlockPool& pool_;
};

}  // namespace pinion
