// Properties of plan and commit over random work in tiny pools: every request gives the tokens it gives alone, no block
// leaks, nobody starves. The harness steps by hand and checks the pool after every step.
#include "runtime/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "runtime/mock_executor.h"

namespace pinion {
namespace {

class Harness {
 public:
  Harness(MockConfig config, SchedulerLimits limits, int hash_bits = 64)
      : config_(config),
        model_(config),
        limits_(limits),
        pool_({.num_blocks = config.options.num_blocks,
               .block_size = config.block_size,
               .windows = config.windows,
               .host_slots = config.options.host_blocks,
               .hash_bits = hash_bits}),
        scheduler_(limits, pool_),
        sampler_(config.vocab) {}

  bool fits(const Request& r) const {
    const auto n = static_cast<int32_t>(r.prompt.size());
    return scheduler_.fits(n, n + r.sampling.max_tokens).ok();
  }

  Sequence* submit(const Request& request) {
    auto owned = std::make_unique<Sequence>();
    Sequence* seq = owned.get();
    seq->ticket = next_++;
    seq->request = request;
    seq->tokens = request.prompt;
    seq->prompt_len = seq->length();
    seq->max_len = seq->prompt_len + request.sampling.max_tokens;
    seq->root = {.cache_salt = request.cache_salt, .rope_variant = model_.rope_variant(seq->prompt_len)};
    seq->rank = schedule_rank(request.priority, steps_);
    seq->sampler.seed = request.sampling.seed.value_or(0);
    seq->prompt_logprobs = request.sampling.prompt_logprobs;
    enqueue(queues_.waiting, seq);
    live_[seq->ticket] = std::move(owned);
    return seq;
  }

  void drop(Sequence* seq) {
    if (planted_leak_)
      seq->table = {};  // its references are lost
    else
      pool_.release(seq->table);
    dequeue(queues_.running, seq);
    dequeue(queues_.waiting, seq);
    live_.erase(seq->ticket);
  }

  // Returns the sequences that finished, as (ticket, output).
  std::vector<std::pair<uint64_t, std::vector<int32_t>>> step() {
    std::vector<std::pair<uint64_t, std::vector<int32_t>>> finished;
    const Plan plan = scheduler_.plan(queues_);
    check(!plan.items.empty() || !plan.preempted.empty(), "no progress");
    last_ = plan;
    preemptions_ += plan.preempted.size();
    for (Sequence* seq : plan.preempted) most_preemptions_ = std::max(most_preemptions_, seq->preemptions + 1);
    scheduler_.commit(plan, queues_);
    check(queues_.running.size() <= static_cast<size_t>(limits_.max_batch_size), "too many run");
    ++steps_;
    if (plan.items.empty()) return finished;
    const BlockMoves moves = pool_.moves();
    model_.move_blocks(moves.copies, moves.awaited);
    fetched_ += std::ranges::count(moves.copies, false, &BlockCopy::to_host);
    if (steps_ % 2 == 0) model_.move_blocks(pool_.copies_ahead(10), false);
    Batch batch;
    for (const PlanItem& item : plan.items) {
      BatchSeq& b = batch.seqs.emplace_back();
      b.tokens = std::span(item.seq->tokens).subspan(item.past, item.tokens);
      b.past = item.past;
      b.rope_length = item.seq->prompt_len;
      b.outputs = item.outputs;
      for (const auto& group : item.seq->table.blocks) b.blocks.emplace_back(group);
      hits_ += item.admitted && item.past > 0;
    }
    auto logits = model_.forward(batch);
    for (const PlanItem& item : plan.items) {
      Sequence* seq = item.seq;
      const auto rows = logits.first(item.outputs * config_.vocab);
      logits = logits.subspan(rows.size());
      scheduler_.issued(item);
      scheduler_.retire(item);
      if (seq->prompt_logprobs >= 0) seq->prompt_rows = std::max(seq->prompt_rows, seq->computed);
      if (item.outputs == 0 || seq->computed != seq->length()) continue;
      const auto sampled = sampler_.sample(rows.last(config_.vocab), seq->request.sampling, seq->sampler, seq->history,
                                           seq->tokens, seq->output_tokens());
      seq->tokens.push_back(sampled->token);
      if (seq->length() < seq->max_len) continue;
      finished.emplace_back(seq->ticket,
                            std::vector<int32_t>(seq->tokens.begin() + seq->prompt_len, seq->tokens.end()));
      drop(seq);
    }
    return finished;
  }

  std::string integrity() const {
    std::vector<const KvTable*> tables;
    for (const auto& [ticket, seq] : live_) tables.push_back(&seq->table);
    return pool_.integrity(tables);
  }

  MockConfig config_;
  MockExecutor model_;
  SchedulerLimits limits_;
  BlockPool pool_;
  Scheduler scheduler_;
  Sampler sampler_;
  Queues queues_;
  std::map<uint64_t, std::unique_ptr<Sequence>> live_;
  Plan last_;
  uint64_t next_ = 1, steps_ = 0, preemptions_ = 0, hits_ = 0, fetched_ = 0;
  int32_t most_preemptions_ = 0;
  bool planted_leak_ = false;
};

Request random_request(std::mt19937_64& random, int32_t vocab) {
  Request r;
  // A few shared beginnings, so that prefixes are hit, and lengths on both sides of the long rope variant.
  const int32_t family = random() % 4, shared = random() % 25, own = 1 + random() % 20;
  for (int32_t i = 0; i < shared; ++i) r.prompt.push_back((family * 7 + i * i) % vocab);
  for (int32_t i = 0; i < own; ++i) r.prompt.push_back(random() % vocab);
  if (random() % 5 == 0) r.prompt.resize(std::max<size_t>(1, shared));  // exactly a shared prefix: a full hit
  r.sampling.max_tokens = 1 + random() % 24;
  r.sampling.temperature = random() % 2 ? 0.f : 1.f;
  r.sampling.seed = random();
  r.priority = static_cast<int32_t>(random() % 3) - 1;
  if (random() % 4 == 0) r.cache_salt = "tenant";
  if (random() % 8 == 0) r.sampling.prompt_logprobs = 0;
  return r;
}

struct World {
  const char* name;
  std::vector<int32_t> windows;
  int32_t num_blocks;
  SchedulerPolicy policy;
  int hash_bits = 64;
  int32_t host_blocks = 0;
};

MockConfig config_of(const World& w) {
  MockConfig config{.windows = w.windows};
  config.options = {.num_blocks = w.num_blocks,
                    .max_batch_size = 6,
                    .max_num_tokens = 24,
                    .max_outputs = 9,
                    .host_blocks = w.host_blocks};
  return config;
}

Harness harness_of(const World& w) {
  return {config_of(w),
          {.max_batch_size = 6, .max_num_tokens = 24, .max_outputs = 9, .chunk_tokens = 10, .policy = w.policy},
          w.hash_bits};
}

struct Outcome {
  size_t finished = 0, cancelled = 0, wrong = 0;
};

// Random requests, a few of them cancelled; `wrong` have other tokens than alone.
Outcome work(Harness& h, size_t count, uint64_t seed) {
  const MockConfig& config = h.config_;
  std::mt19937_64 random(seed);
  std::map<uint64_t, Request> requests;
  size_t submitted = 0;
  Outcome o;
  while (submitted < count || !h.live_.empty()) {
    for (int n = random() % 3; n-- > 0 && submitted < count && h.live_.size() < 20;) {
      const Request r = random_request(random, config.vocab);
      if (!h.fits(r)) continue;
      ++submitted;
      requests[h.submit(r)->ticket] = r;
    }
    if (random() % 12 == 0 && !h.live_.empty()) {
      h.drop(std::next(h.live_.begin(), random() % h.live_.size())->second.get());
      ++o.cancelled;
    }
    if (!h.live_.empty()) {
      for (const auto& [ticket, output] : h.step()) {
        o.wrong += output != tokens_alone(config, requests.at(ticket));
        ++o.finished;
      }
    }
    const std::string lost = h.integrity();
    EXPECT_EQ(lost, "") << "step " << h.steps_;
    if (!lost.empty() || h.steps_ > 1000000) break;
  }
  return o;
}

class RandomWork : public testing::TestWithParam<World> {};

TEST_P(RandomWork, EveryRequestGivesItsOwnTokensAndNothingLeaks) {
  const World& w = GetParam();
  constexpr size_t kRequests = 4000;
  Harness h = harness_of(w);
  const Outcome o = work(h, kRequests, 42 + w.host_blocks);
  EXPECT_EQ(o.wrong, 0u);
  EXPECT_EQ(o.finished + o.cancelled, kRequests);
  EXPECT_EQ(h.pool_.used_blocks(), 0);
  EXPECT_GT(h.hits_, 20u);
  EXPECT_LE(h.most_preemptions_, 12);
  if (w.host_blocks > 0) {
    EXPECT_GT(h.fetched_, 100u);
    EXPECT_GT(h.model_.most_under_way, 2u) << "no copy was ever late";
    EXPECT_GT(h.pool_.host_blocks(), 0);
  }
  if (w.policy == SchedulerPolicy::guaranteed_no_evict) {
    EXPECT_EQ(h.preemptions_, 0u);
  } else {
    EXPECT_GT(h.preemptions_, 10u) << "the pool is too large for this test";
  }
}

constexpr auto kEvict = SchedulerPolicy::max_utilization;
constexpr auto kNoEvict = SchedulerPolicy::guaranteed_no_evict;
INSTANTIATE_TEST_SUITE_P(
    Scheduler, RandomWork,
    testing::Values(World{"full", {0}, 24, kEvict}, World{"full_reserved", {0}, 24, kNoEvict},
                    World{"mixed", {0, 6}, 30, kEvict}, World{"mixed_reserved", {0, 6}, 30, kNoEvict},
                    World{"sliding", {9}, 7, kEvict}, World{"sliding_reserved", {9}, 12, kNoEvict},
                    World{"tiny_window", {1, 0, 5}, 36, kEvict}, World{"three_reserved", {13, 0, 5}, 36, kNoEvict},
                    World{"collisions", {0, 6}, 30, kEvict, 3}, World{"host", {0}, 24, kEvict, 64, 90},
                    World{"host_reserved", {0}, 24, kNoEvict, 64, 70}, World{"host_mixed", {0, 6}, 30, kEvict, 64, 160},
                    World{"host_small", {0, 6}, 30, kEvict, 64, 24},
                    World{"host_three", {13, 0, 5}, 36, kNoEvict, 64, 120},
                    World{"host_collisions", {0, 6}, 30, kEvict, 5, 100}),
    [](const auto& info) { return info.param.name; });

Request plain(std::vector<int32_t> prompt, int32_t max_tokens, int32_t priority = 0) {
  Request r{.prompt = std::move(prompt), .priority = priority};
  r.sampling.temperature = 0;
  r.sampling.max_tokens = max_tokens;
  return r;
}

TEST(Scheduler, FitsExactlyOrIsRefusedWithNumbers) {
  MockConfig config;
  config.options.num_blocks = 5;  // of 4 tokens
  Harness h(config, {});
  EXPECT_TRUE(h.scheduler_.fits(10, 21).ok()) << "the last token's KV is never written";
  const auto refused = h.scheduler_.fits(10, 22);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("6 KV blocks"), std::string::npos) << refused.error().message;
  EXPECT_NE(refused.error().message.find("has 5"), std::string::npos);
  const Request r = plain(std::vector<int32_t>(10, 3), 11);
  h.submit(r);
  std::vector<int32_t> output;
  while (!h.live_.empty())
    for (auto& [ticket, tokens] : h.step()) output = tokens;
  EXPECT_EQ(output, tokens_alone(config, r));
}

// The twins of the property test: what it looks for, planted, is found.
TEST(Scheduler, APlantedLeakIsFound) {
  Harness h({}, {});
  h.planted_leak_ = true;
  h.submit(plain({1, 2, 3, 4, 5}, 3));
  while (!h.live_.empty()) h.step();
  EXPECT_NE(h.integrity(), "");
  EXPECT_GT(h.pool_.used_blocks(), 0);
}

TEST(Scheduler, AWrongBlockTableGivesOtherTokens) {
  const MockConfig config;
  Harness h(config, {});
  const Request r = plain({1, 2, 3, 4, 5, 6, 7, 8, 9}, 20);
  Sequence* seq = h.submit(r);
  h.step();
  std::swap(seq->table.blocks[0][0], seq->table.blocks[0][1]);
  std::vector<int32_t> output;
  while (!h.live_.empty())
    for (auto& [ticket, tokens] : h.step()) output = tokens;
  EXPECT_NE(output, tokens_alone(config, r));
}

TEST(Scheduler, ACopyThatNobodyAwaitsGivesOtherTokens) {
  const World w{"host", {0}, 24, kEvict, 64, 90};
  Harness h = harness_of(w), late = harness_of(w);
  EXPECT_EQ(work(h, 400, 5).wrong, 0u);
  late.model_.planted_unawaited = true;
  EXPECT_GT(work(late, 400, 5).wrong, 0u);
}

TEST(Scheduler, PlanIsPure) {
  Harness h({}, {});
  h.submit(plain({1, 2, 3}, 5));
  h.submit(plain({4, 5, 6}, 5));
  h.step();
  const Plan a = h.scheduler_.plan(h.queues_), b = h.scheduler_.plan(h.queues_);
  ASSERT_EQ(a.items.size(), b.items.size());
  for (size_t i = 0; i < a.items.size(); ++i) {
    EXPECT_EQ(a.items[i].seq, b.items[i].seq);
    EXPECT_EQ(a.items[i].tokens, b.items[i].tokens);
  }
  EXPECT_EQ(h.integrity(), "");
}

TEST(Scheduler, LongPromptsAreChunkedAmongDecodes) {
  MockConfig config;
  Harness h(config, {.max_num_tokens = 32, .chunk_tokens = 8});
  h.submit(plain({1}, 40));
  h.step();
  Sequence* late = h.submit(plain(std::vector<int32_t>(60, 2), 2));
  int steps = 0;
  while (late->output_tokens() == 0) {
    h.step();
    ++steps;
    ASSERT_EQ(h.last_.items.size(), 2u) << "the decode runs in every step";
    EXPECT_EQ(h.last_.items[0].tokens, 1) << "and first";
    EXPECT_LE(h.last_.items[1].tokens, 8);
  }
  EXPECT_EQ(steps, 8);
}

TEST(Scheduler, AFullHitRecomputesTheLastTokenAndOneSubmittedNTimesIsComputedOnce) {
  Harness h({}, {});
  const Request r = plain(std::vector<int32_t>(16, 5), 3);
  Sequence* a = h.submit(r);
  Sequence* b = h.submit(r);
  h.step();
  EXPECT_EQ(h.last_.items.size(), 1u) << "b waits for a's blocks";
  h.step();
  EXPECT_EQ(b->computed, 16);
  ASSERT_EQ(h.last_.items.size(), 2u);
  EXPECT_EQ(h.last_.items[1].past, 12) << "the last block again, for the logits of the last token";
  EXPECT_EQ(a->table.blocks[0][2], b->table.blocks[0][2]);
  EXPECT_NE(a->table.blocks[0][3], b->table.blocks[0][3]);
}

TEST(Scheduler, HigherPrioritiesFirstThenInOrder) {
  Harness h({}, {.max_batch_size = 1});
  h.submit(plain({1, 2}, 1));
  h.submit(plain({2, 3}, 1));
  h.submit(plain({3, 4}, 1, 1));
  std::vector<uint64_t> order;
  while (!h.live_.empty())
    for (const auto& [ticket, output] : h.step()) order.push_back(ticket);
  EXPECT_EQ(order, (std::vector<uint64_t>{3, 1, 2}));
}

TEST(Scheduler, TheLowestPriorityStartsWithinTheAgingBound) {
  Harness h({}, {.max_batch_size = 2});
  std::mt19937_64 random(1);
  for (int i = 0; i < 4; ++i) h.submit(plain({1, 2}, 2, 2));
  const uint64_t poor = h.submit(plain({5, 6}, 1, -1))->ticket;
  uint64_t finished_at = 0;
  while (!finished_at) {
    while (h.live_.size() < 6) h.submit(plain({static_cast<int32_t>(random() % 20), 2}, 2, 2));  // endless high load
    for (const auto& [ticket, output] : h.step())
      if (ticket == poor) finished_at = h.steps_;
    ASSERT_LT(h.steps_, 2000u) << "starved";
  }
  EXPECT_LE(finished_at, static_cast<uint64_t>(3 * kAgingSteps + 20));
  EXPECT_GT(finished_at, static_cast<uint64_t>(2 * kAgingSteps)) << "priority should have mattered";
}

TEST(Scheduler, ExtremePrioritiesDoNotOverflow) {
  EXPECT_GT(schedule_rank(std::numeric_limits<int32_t>::max(), 0), schedule_rank(0, 0));
  EXPECT_LT(schedule_rank(std::numeric_limits<int32_t>::min(), 0), schedule_rank(0, 0));
}

TEST(Scheduler, AllGrowAtOncePreemptsTheLatestAndEveryStepMakesProgress) {
  MockConfig config;
  config.options.num_blocks = 10;
  Harness h(config, {.max_batch_size = 4, .max_num_tokens = 32, .max_outputs = 8});
  std::vector<Request> requests;
  for (int i = 0; i < 4; ++i) {
    requests.push_back(plain(std::vector<int32_t>(7, 3 + i), 20));
    h.submit(requests.back());
  }
  size_t tokens = 0;
  while (!h.live_.empty()) {
    const auto before = h.steps_;
    for (const auto& [ticket, output] : h.step()) EXPECT_EQ(output, tokens_alone(config, requests[ticket - 1]));
    for (Sequence* seq : h.last_.preempted) EXPECT_NE(seq->ticket, 1u) << "the first in the order is never preempted";
    tokens += h.last_.items.size();
    ASSERT_LT(before, 1000u);
  }
  EXPECT_GT(h.preemptions_, 0u);
}

}  // namespace
}  // namespace pinion
