// The loop over an executor that chooses tokens itself: the same tokens and logprobs, and rows of logits only where a
// request needs them on the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <random>
#include <thread>

#include "runtime/engine_loop.h"
#include "runtime/history_room.h"
#include "runtime/mock_executor.h"

namespace pinion {
namespace {

Request request(int32_t n, uint64_t seed) {
  Request r;
  for (int32_t i = 0; i < n; ++i) r.prompt.push_back((i * 7 + n) % 24);
  r.sampling.temperature = 0.8f;
  r.sampling.seed = seed;
  r.sampling.max_tokens = 12;
  return r;
}

OutputPiece run(EngineLoop& loop, Request r) {
  auto done = std::make_shared<std::promise<OutputPiece>>();
  auto all = std::make_shared<OutputPiece>();
  auto future = done->get_future();
  const auto ticket = loop.submit(std::move(r), [done, all](OutputPiece piece) {
    all->tokens.insert(all->tokens.end(), piece.tokens.begin(), piece.tokens.end());
    all->logprobs.insert(all->logprobs.end(), piece.logprobs.begin(), piece.logprobs.end());
    all->error = piece.error;
    if (piece.finish != FinishReason::none) done->set_value(*all);
  });
  EXPECT_TRUE(ticket.ok());
  return future.get();
}

TEST(DeviceSampling, GivesTheHostsTokensAndCopiesNoRows) {
  const MockConfig config;
  MockSamplingExecutor executor(config);
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  for (int32_t n : {1, 5, 20}) {
    EXPECT_EQ(run(loop, request(n, 11 + n)).tokens, tokens_alone(config, request(n, 11 + n))) << n;
  }
  EXPECT_EQ(executor.copied, 0);
  EXPECT_GT(executor.issued, 0);
}

// A device that the host waits for: 20 ms a step, and says so.
class SlowExecutor : public MockSamplingExecutor {
 public:
  using MockSamplingExecutor::MockSamplingExecutor;
  std::span<const int32_t> collect() override {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    waited_ += 0.02;
    return MockSamplingExecutor::collect();
  }
  double waited_seconds() const override { return waited_; }

 private:
  double waited_ = 0;
};

TEST(DeviceSampling, TheHostsWorkIsWithoutItsWaits) {
  SlowExecutor executor{MockConfig{}};
  std::vector<StepWork> work;
  {
    EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr),
                    {.on_step = [&](const StepWork& w) { work.push_back(w); }});
    EXPECT_EQ(run(loop, request(5, 3)).tokens.size(), 12u);
  }
  ASSERT_EQ(work.size(), 12u);
  std::vector<double> seconds;
  for (size_t i = 0; i < work.size(); ++i) {
    EXPECT_EQ(work[i].sequences, 1);
    EXPECT_EQ(work[i].decodes, i > 0) << i;
    EXPECT_GT(work[i].seconds, 0) << i;
    seconds.push_back(work[i].seconds);
  }
  std::ranges::sort(seconds);
  EXPECT_LT(seconds[seconds.size() / 2], 0.01);  // the median: a loaded machine may hold up a few
}

// Every parameter that changes a row before the draw, alone and with others.
SamplingParams random_params(std::mt19937_64& random) {
  SamplingParams p;
  const auto token = [&] { return static_cast<int32_t>(random() % 24); };
  p.temperature = random() % 5 == 0 ? 0 : 0.8f;
  p.seed = random();
  p.max_tokens = 1 + static_cast<int32_t>(random() % 25);
  if (random() % 4 == 0) p.repetition_penalty = 1.2f;
  if (random() % 4 == 0) p.presence_penalty = 0.7f, p.frequency_penalty = -0.4f;
  for (auto n = random() % 4 == 0 ? random() % 6 : 0; n-- > 0;) p.logit_bias.emplace_back(token(), 1.5f);
  for (auto n = random() % 4 == 0 ? random() % 60 : 0; n-- > 0;) {
    auto& word = p.bad_words.emplace_back();
    for (auto length = 1 + random() % 3; length-- > 0;) word.push_back(token());
    if (word.size() == 1 && n % 8 != 0) p.bad_words.pop_back();  // or no token is left
  }
  if (random() % 4 == 0) p.stop_token_ids = {token()};
  if (random() % 4 == 0) p.min_tokens = p.max_tokens / 2;
  if (random() % 4 == 0) p.logprobs = static_cast<int32_t>(random() % 30);
  if (random() % 5 == 0) p.ignore_eos = true;
  return p;
}

TEST(DeviceSampling, HasEveryParameterAStepAhead) {
  const MockConfig config{.eos = {3}};
  MockSamplingExecutor executor(config);
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  std::mt19937_64 random(2);
  for (int i = 0; i < 300; ++i) {
    Request r = request(1 + i % 20, 0);
    r.sampling = random_params(random);
    std::vector<TokenLogprob> want;
    const auto tokens = tokens_alone(config, r, &want);
    const OutputPiece got = run(loop, r);
    ASSERT_EQ(got.tokens, tokens) << i;
    ASSERT_EQ(got.logprobs.size(), r.sampling.logprobs < 0 ? 0 : tokens.size());
    for (size_t t = 0; t < got.logprobs.size(); ++t) {
      EXPECT_EQ(got.logprobs[t].token, tokens[t]);
      EXPECT_EQ(got.logprobs[t].rank, want[t].rank);
      EXPECT_EQ(got.logprobs[t].logprob, want[t].logprob);
      EXPECT_EQ(got.logprobs[t].top, want[t].top);
    }
  }
  EXPECT_EQ(executor.copied, 0);
  EXPECT_EQ(executor.most_in_flight, 2);
}

// Once a sequence's history is on the device, the device keeps it.
TEST(DeviceSampling, WritesAHistoryOnce) {
  const MockConfig config;
  MockSamplingExecutor executor(config);
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  for (int i = 1; i <= 50; ++i) {  // the room is for some 20 of them
    Request r = request(7, i);
    r.sampling.frequency_penalty = 1;
    EXPECT_EQ(run(loop, r).tokens, tokens_alone(config, r));
    EXPECT_EQ(executor.histories_written, i);
  }
}

// A history's room is doubled when it is full, and the steps go on; with every token seen it need not grow any more.
TEST(DeviceSampling, GrowsAHistory) {
  for (const int32_t vocab : {4000, 300}) {
    MockConfig config{.vocab = vocab, .context = 2048};
    config.options.num_blocks = 400;
    MockSamplingExecutor executor(config, {.edits = 10, .history = 2500});
    EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
    Request r = request(5, 3);
    r.sampling.presence_penalty = 3;
    r.sampling.temperature = 2;
    r.sampling.max_tokens = 1200;
    EXPECT_EQ(run(loop, r).tokens, tokens_alone(config, r));
    EXPECT_EQ(executor.histories_written, vocab == 300 ? 2 : 4);
    EXPECT_EQ(executor.copied, 0);
    EXPECT_EQ(executor.most_in_flight, 2);
  }
}

// Histories that grow while others find no room and the host chooses for a while.
TEST(DeviceSampling, SharesTheRoomForHistories) {
  MockConfig config{.vocab = 3000, .context = 2048};
  config.options.num_blocks = 1000;
  MockSamplingExecutor executor(config, {.edits = 10, .history = 2300});
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  std::vector<Request> requests;
  std::vector<std::future<std::vector<int32_t>>> answers;
  for (int32_t i = 0; i < 12; ++i) {
    Request& r = requests.emplace_back(request(5 + i, i));
    r.sampling.frequency_penalty = 3;
    r.sampling.temperature = 2;
    r.sampling.max_tokens = 150 + 41 * i;
    auto done = std::make_shared<std::promise<std::vector<int32_t>>>();
    answers.push_back(done->get_future());
    auto tokens = std::make_shared<std::vector<int32_t>>();
    const auto ticket = loop.submit(r, [done, tokens](OutputPiece piece) {
      tokens->insert(tokens->end(), piece.tokens.begin(), piece.tokens.end());
      if (piece.finish != FinishReason::none) done->set_value(*tokens);
    });
    ASSERT_TRUE(ticket.ok());
  }
  for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(answers[i].get(), tokens_alone(config, requests[i])) << i;
  EXPECT_GT(executor.copied, 10);
  EXPECT_GT(executor.issued, 100);
}

TEST(DeviceSampling, LeavesWhatItCannotDoToTheHost) {
  const MockConfig config;
  MockSamplingExecutor executor(config, {.edits = 2, .history = 10});
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  Request penalised = request(5, 3);
  penalised.sampling.repetition_penalty = 1.3f;
  Request biased = request(5, 3);
  biased.sampling.logit_bias = {{1, 2.0f}, {2, 1.0f}, {2, 1.0f}};
  for (const Request& r : {penalised, biased}) {
    EXPECT_EQ(run(loop, r).tokens, tokens_alone(config, r));
    EXPECT_EQ(executor.issued, 0);
  }
  Request prompt = request(5, 3);  // only the rows of its prompt
  prompt.sampling.prompt_logprobs = 2;
  EXPECT_EQ(run(loop, prompt).tokens, tokens_alone(config, prompt));
  EXPECT_EQ(executor.issued, 11);
}

TEST(DeviceSampling, NoTokenLeftIsSaid) {
  MockSamplingExecutor executor{MockConfig{}};
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  Request r = request(5, 3);
  for (int32_t id = 0; id < 24; ++id) r.sampling.bad_words.push_back({id});
  const OutputPiece end = run(loop, r);
  ASSERT_TRUE(end.error.has_value());
  EXPECT_EQ(end.error->message.find("not finite"), std::string::npos);
  EXPECT_NE(end.error->message.find("no token is left"), std::string::npos);
  EXPECT_EQ(executor.copied, 0);
}

TEST(HistoryRoom, GivesOutWhatComesBack) {
  HistoryRoom room(10);
  auto a = room.take(4), b = room.take(3), c = room.take(3);
  EXPECT_EQ(a.begin(), 0);
  EXPECT_EQ(b.begin(), 4);
  EXPECT_EQ(c.begin(), 7);
  EXPECT_EQ(room.take(1).size(), 0);
  a = {};
  c = {};
  EXPECT_EQ(room.take(5).size(), 0);  // 4 and 3, apart
  b = {};
  EXPECT_EQ(room.take(10).size(), 10);
  EXPECT_EQ(room.take(10).begin(), 0);
}

TEST(DeviceSampling, ABrokenRowFailsItsRequest) {
  MockSamplingExecutor executor{MockConfig{}};
  executor.broken = true;
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  const OutputPiece end = run(loop, request(5, 3));
  ASSERT_TRUE(end.error.has_value());
  EXPECT_NE(end.error->message.find("not finite"), std::string::npos);
  EXPECT_EQ(loop.integrity(), "");
}

// Ends that the host learns of when the next step already runs, preemption and prompts among decodes: the tokens are
// those of the request alone, and no block is lost.
TEST(DeviceSampling, AStepAheadChangesNothing) {
  int round = 0;
  for (const int host_blocks : {0, 60, 500, 0, 60, 500}) {
    const auto policy = ++round > 3 ? SchedulerPolicy::max_utilization : SchedulerPolicy::guaranteed_no_evict;
    MockConfig config{.windows = {0, 7}, .eos = {3}};
    config.options.num_blocks = 40;
    config.options.host_blocks = host_blocks;
    MockSamplingExecutor executor(config);
    EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {.policy = policy});
    struct Waiting {
      Request request;
      uint64_t ticket = 0;
      bool cancelled = false;
      std::shared_ptr<OutputPiece> all = std::make_shared<OutputPiece>();
      std::future<void> done;
    };
    std::vector<Waiting> waiting;
    std::mt19937_64 random(6 + round);
    for (int i = 0; i < 400; ++i) {
      Waiting& w = waiting.emplace_back();
      w.request = request(1 + static_cast<int32_t>(random() % 30), random());
      w.request.sampling = random_params(random);
      if (i % 17 == 0) w.request.sampling.prompt_logprobs = 1;  // the host chooses some
      auto done = std::make_shared<std::promise<void>>();
      w.done = done->get_future();
      const auto ticket = loop.submit(w.request, [done, all = w.all](OutputPiece piece) {
        all->tokens.insert(all->tokens.end(), piece.tokens.begin(), piece.tokens.end());
        all->finish = piece.finish;
        if (piece.finish != FinishReason::none) done->set_value();
      });
      ASSERT_TRUE(ticket.ok());
      w.ticket = *ticket;
      if (i % 7 == 0) w.cancelled = true, loop.cancel(*ticket);
    }
    for (Waiting& w : waiting) {
      w.done.wait();
      const auto want = tokens_alone(config, w.request);
      if (w.all->finish == FinishReason::cancelled) {
        EXPECT_TRUE(w.cancelled);
        EXPECT_TRUE(std::equal(w.all->tokens.begin(), w.all->tokens.end(), want.begin()));
      } else {
        EXPECT_EQ(w.all->tokens, want) << "temperature " << w.request.sampling.temperature << ", penalty "
                                       << w.request.sampling.repetition_penalty << ", at least "
                                       << w.request.sampling.min_tokens << ", prompt " << w.request.prompt.size();
      }
    }
    loop.drain();
    EXPECT_EQ(executor.most_in_flight, 2);
    EXPECT_GT(executor.copied, 0);
    EXPECT_EQ(loop.stats().blocks_used, 0);
    EXPECT_EQ(loop.stats().host_hit_blocks > 0, host_blocks > 0);
    EXPECT_EQ(loop.integrity(), "");
  }
}

TEST(DeviceSampling, AFailedStepFailsItsRequestsAndTheNextRun) {
  MockSamplingExecutor executor{MockConfig{}};
  int collects = 0;
  executor.collecting = [&] {
    if (++collects == 4) throw std::runtime_error("the device fell over");
  };
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  const OutputPiece end = run(loop, request(5, 3));
  ASSERT_TRUE(end.error.has_value());
  EXPECT_EQ(end.tokens.size(), 3u);
  EXPECT_EQ(run(loop, request(6, 4)).tokens, tokens_alone(MockConfig{}, request(6, 4)));
  EXPECT_EQ(loop.stats().blocks_used, 0);
  EXPECT_EQ(loop.integrity(), "");
}

}  // namespace
}  // namespace pinion
