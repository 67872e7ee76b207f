#include "runtime/scheduler.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "base/check.h"

namespace pinion {

int64_t schedule_rank(int32_t priority, uint64_t arrival_step) {
  return std::clamp(priority, -kMaxPriority, kMaxPriority) * kAgingSteps - static_cast<int64_t>(arrival_step);
}

bool runs_before(const Sequence* a, const Sequence* b) {
  return a->rank != b->rank ? a->rank > b->rank : a->ticket < b->ticket;
}

void enqueue(std::vector<Sequence*>& queue, Sequence* seq) {
  queue.insert(std::ranges::upper_bound(queue, seq, runs_before), seq);
}

void dequeue(std::vector<Sequence*>& queue, Sequence* seq) {
  std::erase(queue, seq);
}

// The pool and the step as they would be after the part of the plan made so far.
class Scheduler::Draft {
 public:
  Draft(const BlockPool& pool, const SchedulerLimits& limits, const Queues& queues)
      : pool_(pool),
        limits_(limits),
        free_(pool.free_blocks()),
        tokens_(limits.max_num_tokens),
        outputs_(limits.max_outputs),
        reserved_(pool.windowed_sharing()) {
    for (const Sequence* seq : queues.running) reserved_ += claim(seq);
  }

  int32_t free() const { return free_; }
  int32_t tokens() const { return tokens_; }
  int32_t outputs() const { return outputs_; }
  int32_t chunk_budget() const { return decodes_ ? std::min(tokens_, limits_.chunk_tokens) : tokens_; }

  // Pages that running sequences will still claim: for all they may ever write (guaranteed_no_evict), or for what is
  // known of them now. The first is never touched by another; the second only keeps newcomers out.
  int32_t reserved() const { return reserved_; }
  int32_t reserved_by_all() const { return guaranteed() ? reserved_ : 0; }
  int32_t reserved_by_others(const Sequence* seq) const { return guaranteed() ? reserved_ - claim(seq) : 0; }
  int32_t horizon(const Sequence* seq) const { return guaranteed() ? seq->max_written() : seq->length(); }

  bool preempted(Sequence* seq) const { return gone_.contains(seq); }
  void preempt(Sequence* seq) {
    gone_.insert(seq);
    for (const auto& group : seq->table.blocks)
      for (const int32_t block : group)
        if (block >= 0 && pool_.ref_count(block) + --delta_[block] == 0) ++free_;
  }

  // Of a hit's blocks, those that nobody holds: sharing them takes them from the free list.
  int32_t unheld(const std::vector<int32_t>& hit) const {
    return static_cast<int32_t>(std::ranges::count_if(hit, [&](int32_t b) { return held(b) == 0; }));
  }
  // Sharers of a windowed page part ways as their windows move on; each will need one of its own.
  int32_t windowed_held(const std::vector<int32_t>& hit) const {
    return static_cast<int32_t>(
        std::ranges::count_if(hit, [&](int32_t b) { return held(b) > 0 && pool_.windowed(b); }));
  }
  void share(const std::vector<int32_t>& hit) {
    for (const int32_t block : hit)
      if (pool_.ref_count(block) + delta_[block]++ == 0) --free_;
  }
  int32_t claim(const Sequence* seq) const { return pool_.still_needed(seq->table, horizon(seq)); }

  void reserve(int32_t claim) { reserved_ += claim; }

  // `claim`: how much of `reserved` is the sequence's own.
  void schedule(Plan& plan, const PlanItem& item, int32_t pages, int32_t claim) {
    free_ -= pages;
    reserved_ -= std::min(pages, claim);
    tokens_ -= item.tokens;
    outputs_ -= item.outputs;
    decodes_ |= item.seq->decoding();
    plan.items.push_back(item);
  }

 private:
  bool guaranteed() const { return limits_.policy == SchedulerPolicy::guaranteed_no_evict; }
  int32_t held(int32_t block) const {
    const auto it = delta_.find(block);
    return pool_.ref_count(block) + (it == delta_.end() ? 0 : it->second);
  }

  const BlockPool& pool_;
  const SchedulerLimits& limits_;
  int32_t free_, tokens_, outputs_;
  int32_t reserved_;
  bool decodes_ = false;
  std::unordered_map<int32_t, int32_t> delta_;  // change of a block's references
  std::unordered_set<Sequence*> gone_;
};

namespace {

// The chunk of a sequence that starts at `past`: as many tokens as budget, logits rows and `pages_left` allow.
// pages(end): what covering [0, end) would take; monotone in end.
template <class Pages>
PlanItem chunk(Sequence* seq, int32_t past, int32_t budget, int32_t outputs, int32_t pages_left, Pages pages) {
  PlanItem item{.seq = seq, .past = past};
  int32_t n = std::min(budget, seq->length() - past);
  int32_t low = 0;  // the largest n whose pages are there, by bisection
  while (low < n) {
    const int32_t middle = n - (n - low) / 2;
    if (pages(past + middle) <= pages_left)
      low = middle;
    else
      n = middle - 1;
  }
  // Rows of logits: the whole chunk's while prompt logprobs are being gathered, else the last token's if it is new.
  if (seq->wants_prompt_rows()) {
    const int32_t first = std::max(past, seq->prompt_rows);
    n = std::min(n, first - past + outputs);
    item.outputs = std::max(0, past + n - first);
  } else if (past + n == seq->length()) {
    if (outputs == 0) n = std::max(0, n - 1);  // the last token waits for a row
    item.outputs = outputs > 0 && n > 0 ? 1 : 0;
  }
  item.tokens = n;
  return item;
}

}  // namespace

Scheduler::Scheduler(SchedulerLimits limits, BlockPool& pool) : limits_(limits), pool_(pool) {
  check(limits_.max_batch_size > 0 && limits_.max_num_tokens > 0 && limits_.max_outputs > 0 && limits_.chunk_tokens > 0,
        "scheduler limits must be positive");
}

Status Scheduler::fits(int32_t prompt_len, int32_t max_len) const {
  const int32_t pages = pool_.peak(std::max(max_len - 1, prompt_len));
  const int32_t total = pool_.options().num_blocks;
  if (pages <= total) return {};
  return fail(Errc::invalid_argument,
              "the request can never fit: it needs " + std::to_string(pages) + " KV blocks, the cache has " +
                  std::to_string(total),
              std::to_string(prompt_len) + " prompt tokens, " + std::to_string(max_len) + " with the output",
              "shorten the prompt, lower max_tokens or give the KV cache more memory");
}

Plan Scheduler::plan(const Queues& queues) const {
  Plan plan;
  plan.items.reserve(queues.running.size() + queues.waiting.size());
  Draft draft(pool_, limits_, queues);
  plan_decodes(queues, draft, plan);
  plan_prompts(queues, draft, plan);
  // Nobody is admitted in a step that preempts: the pages just won would be lost again.
  if (plan.preempted.empty()) plan_admissions(queues, draft, plan);
  return plan;
}

// Decodes first: they are waited for token by token. One that lacks a page takes it from the last in the order.
void Scheduler::plan_decodes(const Queues& queues, Draft& draft, Plan& plan) const {
  for (Sequence* seq : queues.running) {
    if (draft.preempted(seq) || !seq->decoding() || seq->awaits_end()) continue;
    if (draft.tokens() == 0 || draft.outputs() == 0) return;
    const int32_t pages = pool_.needed(seq->table, seq->length());
    while (pages > draft.free() && !draft.preempted(seq)) {
      check(limits_.policy == SchedulerPolicy::max_utilization, "guaranteed_no_evict ran out of pages");
      const auto last = std::find_if(queues.running.rbegin(), queues.running.rend(),
                                     [&](Sequence* other) { return !draft.preempted(other); });
      draft.preempt(*last);  // at worst the sequence itself: all that remain go before it
      plan.preempted.push_back(*last);
    }
    if (draft.preempted(seq)) continue;
    draft.schedule(plan, {.seq = seq, .past = seq->computed, .tokens = 1, .outputs = 1}, pages, draft.claim(seq));
  }
}

// Prompts in progress fill the rest of the step, in chunks.
void Scheduler::plan_prompts(const Queues& queues, Draft& draft, Plan& plan) const {
  for (Sequence* seq : queues.running) {
    if (draft.preempted(seq) || seq->decoding()) continue;
    const auto pages = [&](int32_t end) { return pool_.needed(seq->table, end); };
    const int32_t left = draft.free() - draft.reserved_by_others(seq);
    const PlanItem item = chunk(seq, seq->computed, draft.chunk_budget(), draft.outputs(), left, pages);
    if (item.tokens > 0) draft.schedule(plan, item, pages(item.past + item.tokens), draft.claim(seq));
  }
  // Only stuck prompts: the last in the order gives its pages to the first. One alone always fits: fits().
  if (plan.items.empty() && plan.preempted.empty() && queues.running.size() > 1 &&
      std::ranges::none_of(queues.running, &Sequence::awaits_end)) {
    check(limits_.policy == SchedulerPolicy::max_utilization, "guaranteed_no_evict ran out of pages");
    plan.preempted.push_back(queues.running.back());
  }
}

// New ones, strictly in order: the first that does not fit stops the rest, or large requests would starve. Only one
// that waits for another's prompt, to share its blocks, is passed over.
void Scheduler::plan_admissions(const Queues& queues, Draft& draft, Plan& plan) const {
  if (queues.waiting.empty() || queues.running.size() >= static_cast<size_t>(limits_.max_batch_size)) return;
  std::vector<PlanItem> prompts;  // in progress
  for (Sequence* seq : queues.running)
    if (!seq->decoding() || seq->retired < seq->computed) prompts.push_back({.seq = seq, .past = seq->retired});
  size_t running = queues.running.size();
  for (Sequence* seq : queues.waiting) {
    if (running >= static_cast<size_t>(limits_.max_batch_size) || draft.tokens() == 0) return;
    if (seq->awaits_end()) continue;
    // The last token is always computed, for its logits; so are all whose logits were asked for.
    const int32_t limit = seq->wants_prompt_rows() ? 0 : seq->length() - 1;
    const int32_t hit = pool_.match(seq->root, seq->tokens, limit);
    if (std::ranges::any_of(prompts, [&](const PlanItem& p) { return worth_waiting_for(p, *seq, hit, limit); }))
      continue;

    const auto [shared, fetched] = pool_.hit_blocks(seq->root, seq->tokens, hit);
    const int32_t free = draft.free() - draft.unheld(shared);
    const int32_t claim = pool_.still_needed_after_hit(hit, draft.horizon(seq)) + draft.windowed_held(shared) + fetched;
    // max_utilization leaves each group a page when others run, so that the first step does not preempt at once.
    const int32_t headroom = limits_.policy == SchedulerPolicy::max_utilization && running > 0 ? pool_.groups() : 0;
    if (free - draft.reserved() < claim + headroom) return;

    const auto pages = [&, more = fetched](int32_t end) { return pool_.needed_after_hit(hit, end) + more; };
    PlanItem item = chunk(seq, hit, draft.chunk_budget(), draft.outputs(), free - draft.reserved_by_all(), pages);
    if (item.tokens == 0) return;
    item.admitted = true;
    draft.share(shared);
    draft.reserve(claim);
    draft.schedule(plan, item, pages(hit + item.tokens), claim);
    prompts.push_back(item);
    ++running;
  }
}

// Whether `seq` would share at least one more block once `prompt` is computed: then it waits for it, as when one
// request is submitted n times.
bool Scheduler::worth_waiting_for(const PlanItem& prompt, const Sequence& seq, int32_t hit, int32_t limit) const {
  if (!pool_.options().prefix_reuse || hit + pool_.options().block_size > limit) return false;
  const Sequence& other = *prompt.seq;
  const int32_t end = std::min(limit, other.length());
  if (other.root != seq.root || end <= hit) return false;
  const auto differ = std::mismatch(seq.tokens.begin(), seq.tokens.begin() + end, other.tokens.begin()).first;
  const int32_t block = pool_.options().block_size;
  const int32_t common = static_cast<int32_t>(differ - seq.tokens.begin()) / block * block;
  return common > hit && prompt.past < common;
}

void Scheduler::commit(const Plan& plan, Queues& queues) {
  for (Sequence* seq : plan.preempted) {
    pool_.release(seq->table);
    seq->computed = seq->retired = 0;
    ++seq->preemptions;
    dequeue(queues.running, seq);
    enqueue(queues.waiting, seq);
  }
  // All hits are taken before any page is: taking one may evict a cached block that a hit counts on.
  for (const PlanItem& item : plan.items) {
    if (!item.admitted) continue;
    pool_.attach(item.seq->table, item.seq->root, item.seq->tokens, item.past);
    item.seq->computed = item.seq->retired = item.past;
    dequeue(queues.waiting, item.seq);
    enqueue(queues.running, item.seq);
  }
  pool_.fetch();
  for (const PlanItem& item : plan.items) pool_.grow(item.seq->table, item.past + item.tokens);
}

void Scheduler::issued(const PlanItem& item) {
  check(item.seq->computed == item.past, "a step was issued twice");
  item.seq->computed = item.past + item.tokens;
}

void Scheduler::retire(const PlanItem& item) {
  Sequence& seq = *item.seq;
  check(seq.retired == item.past && seq.computed >= item.past + item.tokens, "steps retire in another order");
  seq.retired = item.past + item.tokens;
  pool_.written(seq.table, seq.tokens, seq.retired);
}

}  // namespace pinion
