// The loop as its callers see it: pieces, ends, stop strings, cancels from other threads, failing devices, drains.
#include "runtime/engine_loop.h"

#include <gtest/gtest.h>

#include <future>
#include <mutex>
#include <random>
#include <thread>

#include "runtime/mock_executor.h"
#include "text/tokenizer.h"

namespace pinion {
namespace {

// Collects a request's pieces; wait() returns when the last one came.
class Collector {
 public:
  OutputSink sink() {
    return [state = state_](OutputPiece piece) {
      const std::lock_guard lock(state->mutex);
      if (state->ended) state->after_end = true;
      OutputPiece& all = state->all;
      all.tokens.insert(all.tokens.end(), piece.tokens.begin(), piece.tokens.end());
      all.text += piece.text;
      all.logprobs.insert(all.logprobs.end(), piece.logprobs.begin(), piece.logprobs.end());
      if (!piece.prompt_logprobs.empty()) all.prompt_logprobs = piece.prompt_logprobs;
      all.finish = piece.finish;
      all.stop_reason = piece.stop_reason;
      all.prompt_tokens = piece.prompt_tokens;
      all.cached_tokens = piece.cached_tokens;
      all.output_tokens = piece.output_tokens;
      all.error = piece.error;
      ++state->pieces;
      if (piece.finish == FinishReason::none) return;
      state->ended = true;
      state->done.set_value();
    };
  }
  OutputPiece wait() {
    if (state_->future.wait_for(std::chrono::seconds(20)) != std::future_status::ready) {
      ADD_FAILURE() << "no end came";
      return {};
    }
    const std::lock_guard lock(state_->mutex);
    EXPECT_FALSE(state_->after_end);
    return state_->all;
  }

 private:
  struct State {
    std::mutex mutex;
    OutputPiece all;
    int pieces = 0;
    bool ended = false, after_end = false;
    std::promise<void> done;
    std::future<void> future = done.get_future();
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

Request request(std::vector<int32_t> prompt, int32_t max_tokens) {
  Request r{.prompt = std::move(prompt)};
  r.sampling.temperature = 0;
  r.sampling.max_tokens = max_tokens;
  return r;
}

OutputPiece run(EngineLoop& loop, Request r) {
  Collector c;
  const auto ticket = loop.submit(std::move(r), c.sink());
  EXPECT_TRUE(ticket.ok()) << ticket.error().message;
  return ticket.ok() ? c.wait() : OutputPiece{};
}

// Token t is the letter 'a' + t.
class Letters : public TextDecoder {
 public:
  std::string push(int32_t token) override { return std::string(1, static_cast<char>('a' + token)); }
  std::string finish() override { return ""; }
};
TextDecoderFactory letters() {
  return [](std::span<const int32_t>, bool) { return std::make_unique<Letters>(); };
}
std::string spell(const std::vector<int32_t>& tokens) {
  std::string text;
  for (const int32_t t : tokens) text += static_cast<char>('a' + t);
  return text;
}

TEST(EngineLoop, GivesTheTokensOfTheRequestAlone) {
  const MockConfig config;
  MockExecutor model(config);
  EngineLoop loop(model, letters(), {});
  Request r = request({1, 2, 3, 4, 5, 6}, 12);
  r.sampling.temperature = 1;
  r.sampling.seed = 77;
  r.sampling.repetition_penalty = 1.3f;
  r.sampling.frequency_penalty = 0.4f;
  const auto want = tokens_alone(config, r);
  const OutputPiece got = run(loop, r);
  EXPECT_EQ(got.tokens, want);
  EXPECT_EQ(got.text, spell(want));
  EXPECT_EQ(got.finish, FinishReason::length);
  EXPECT_EQ(got.prompt_tokens, 6);
  EXPECT_EQ(got.output_tokens, 12);
  EXPECT_EQ(got.cached_tokens, 0);
  EXPECT_EQ(run(loop, r).cached_tokens, 4) << "a whole block of the same prompt";
  EXPECT_EQ(loop.integrity(), "");
}

// A prefix that others have pushed out of the pool comes back from the host, and counts as cached; when a copy fails,
// its step's requests fail, nothing on the host is believed any more, and the next requests run.
TEST(EngineLoop, HitsOnTheHostAreCountedAndFailedCopiesAreForgotten) {
  MockConfig config;
  config.options.num_blocks = 8;
  config.options.host_blocks = 40;
  MockExecutor model(config);
  EngineLoop loop(model, letters(), {});
  const auto prompt = [](int32_t first) {
    std::vector<int32_t> p;
    for (int32_t i = 0; i < 20; ++i) p.push_back((first + i * i) % 24);
    return request(p, 8);
  };
  const auto want = tokens_alone(config, prompt(0));
  EXPECT_EQ(run(loop, prompt(0)).tokens, want);
  EXPECT_EQ(loop.stats().bytes_to_host, 0u) << "nothing had to go";
  for (int32_t i = 1; i < 5; ++i) EXPECT_EQ(run(loop, prompt(i)).tokens, tokens_alone(config, prompt(i)));
  OutputPiece again = run(loop, prompt(0));
  EXPECT_EQ(again.tokens, want);
  EXPECT_EQ(again.cached_tokens, 16);
  LoopStats s = loop.stats();
  EXPECT_EQ(s.host_hit_blocks, 4u);
  EXPECT_EQ(s.bytes_from_host, 4 * 64u);
  EXPECT_GE(s.bytes_to_host, 4 * 64u);
  EXPECT_EQ(s.host_blocks_total, 40);
  EXPECT_GT(s.host_blocks_used, 4);

  model.moving = [] { throw std::runtime_error("the copies fell over"); };
  EXPECT_EQ(run(loop, prompt(2)).finish, FinishReason::error);
  EXPECT_EQ(loop.stats().host_blocks_used, 0);
  EXPECT_EQ(loop.integrity(), "");
  model.moving = {};
  again = run(loop, prompt(3));
  EXPECT_EQ(again.tokens, tokens_alone(config, prompt(3)));
  EXPECT_EQ(loop.integrity(), "");
}

TEST(EngineLoop, EndsAtEosStopTokensAndLimits) {
  MockConfig config;
  MockExecutor plain(config);
  const auto tokens = tokens_alone(config, request({1, 2, 3}, 10));
  config.eos = {tokens[4]};
  const size_t first = std::ranges::find(tokens, tokens[4]) - tokens.begin();
  MockExecutor model(config);
  EngineLoop loop(model, letters(), {.max_seq_len = 12});

  OutputPiece got = run(loop, request({1, 2, 3}, 10));
  EXPECT_EQ(got.finish, FinishReason::stop);
  EXPECT_EQ(got.tokens.size(), first + 1) << "the end token is among the tokens";
  EXPECT_EQ(got.text, spell(tokens).substr(0, first)) << "and not in the text";
  EXPECT_EQ(got.stop_reason, "");

  Request r = request({1, 2, 3}, 100);
  r.sampling.ignore_eos = true;
  got = run(loop, r);
  EXPECT_EQ(got.finish, FinishReason::length);
  EXPECT_EQ(got.tokens.size(), 9u) << "max_seq_len";

  r.sampling.stop_token_ids = {tokens[2]};
  got = run(loop, r);
  EXPECT_EQ(got.finish, FinishReason::stop);
  EXPECT_EQ(got.stop_reason, std::to_string(tokens[2]));

  r = request({1, 2, 3}, 9);
  r.sampling.min_tokens = 9;
  got = run(loop, r);
  EXPECT_EQ(got.tokens.size(), 9u);
  EXPECT_EQ(std::ranges::count(got.tokens, config.eos[0]), 0);
}

TEST(EngineLoop, StopStringsCutTheTextAcrossTokens) {
  const MockConfig config;
  MockExecutor model(config);
  EngineLoop loop(model, letters(), {});
  const std::string text = spell(tokens_alone(config, request({9, 8}, 12)));
  Request r = request({9, 8}, 12);
  r.sampling.stop = {"nowhere", text.substr(5, 3)};
  const size_t at = text.find(r.sampling.stop[1]);
  OutputPiece got = run(loop, r);
  EXPECT_EQ(got.text, text.substr(0, at));
  EXPECT_EQ(got.stop_reason, r.sampling.stop[1]);
  EXPECT_EQ(got.finish, FinishReason::stop);
  EXPECT_EQ(got.tokens.size(), at + 3);
  r.sampling.include_stop = true;
  EXPECT_EQ(run(loop, r).text, text.substr(0, at + 3));
  r.sampling.stop = {text.substr(10, 2) + "?"};  // held back at the end, then given out
  got = run(loop, r);
  EXPECT_EQ(got.text, text);
  EXPECT_EQ(got.finish, FinishReason::length);
}

TEST(EngineLoop, LogprobsOfOutputAndPrompt) {
  MockConfig config;
  config.options.max_outputs = 3;  // the prompt's rows come in several steps
  MockExecutor model(config);
  EngineLoop loop(model, nullptr, {});
  Request r = request({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 3);
  run(loop, r);  // its blocks are cached now, and must not be used: all rows are wanted
  r.sampling.logprobs = 2;
  r.sampling.prompt_logprobs = 1;
  const OutputPiece got = run(loop, r);
  ASSERT_EQ(got.logprobs.size(), 3u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(got.logprobs[i].token, got.tokens[i]);
    EXPECT_EQ(got.logprobs[i].rank, 1);
    EXPECT_EQ(got.logprobs[i].top.size(), 2u);
  }
  ASSERT_EQ(got.prompt_logprobs.size(), 10u);
  EXPECT_TRUE(got.prompt_logprobs[0].top.empty());
  for (int i = 1; i < 10; ++i) {
    EXPECT_EQ(got.prompt_logprobs[i].token, r.prompt[i]);
    EXPECT_EQ(got.prompt_logprobs[i].top.size(), 1u);
    EXPECT_LT(got.prompt_logprobs[i].logprob, 0);
    // The best continuation of a shorter prompt is what greedy decoding of it gives.
    const std::vector<int32_t> shorter(r.prompt.begin(), r.prompt.begin() + i);
    EXPECT_EQ(got.prompt_logprobs[i].top[0].first, tokens_alone(config, request(shorter, 1))[0]);
  }
}

TEST(EngineLoop, RefusesAtTheDoor) {
  MockConfig config;
  config.options.num_blocks = 5;
  MockExecutor model(config);
  EngineLoop loop(model, nullptr, {.max_seq_len = 100});
  const auto refused = [&](const Request& r, std::string_view part) {
    const auto result = loop.submit(r, [](OutputPiece) { ADD_FAILURE() << "refused, yet called"; });
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, Errc::invalid_argument);
    EXPECT_NE(result.error().message.find(part), std::string::npos) << result.error().message;
  };
  refused(request({}, 1), "empty");
  refused(request({99}, 1), "99");
  refused(request(std::vector<int32_t>(100, 1), 1), "max_seq_len is 100");
  refused(request({1, 2}, 30), "8 KV blocks, the cache has 5");
  Request r = request({1}, 1);
  r.sampling.stop = {"x"};
  refused(r, "tokenizer");
  r = request({1}, 1);
  r.sampling.top_p = -1;
  refused(r, "top_p");
  EXPECT_EQ(loop.stats().requests_rejected, 6u);
  EXPECT_EQ(run(loop, request({1, 2}, 4)).finish, FinishReason::length) << "others run";
}

TEST(EngineLoop, QueueLimitDoesNotCountWhomTheBatchHasRoomFor) {
  MockExecutor model(MockConfig{});
  std::mutex gate;
  model.before = [&](const Batch&) { const std::lock_guard lock(gate); };
  EngineLoop loop(model, nullptr, {.max_batch_size = 3, .max_queue = 1});
  std::unique_lock closed(gate);
  ASSERT_TRUE(loop.submit(request({1}, 5), [](OutputPiece) {}).ok());
  while (loop.stats().running == 0) std::this_thread::yield();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(loop.submit(request({2}, 5), [](OutputPiece) {}).ok()) << i;
  EXPECT_EQ(loop.submit(request({3}, 5), [](OutputPiece) {}).error().code, Errc::exhausted);
  closed.unlock();
  loop.drain();
  EXPECT_EQ(loop.stats().requests_finished, 4u);
}

TEST(EngineLoop, QueueLimitAndCancelsAndDrain) {
  MockConfig config;
  MockExecutor model(config);
  std::mutex gate;
  model.before = [&](const Batch&) { const std::lock_guard lock(gate); };
  EngineLoop loop(model, nullptr, {.max_batch_size = 1, .max_queue = 2});
  Collector a, b, c, d;
  std::unique_lock closed(gate);
  const auto first = loop.submit(request({1}, 100), a.sink());
  while (loop.stats().running == 0) std::this_thread::yield();
  const auto second = loop.submit(request({2}, 5), b.sink());
  ASSERT_TRUE(loop.submit(request({3}, 5), c.sink()).ok());
  const auto full = loop.submit(request({4}, 5), d.sink());
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, Errc::exhausted);
  loop.cancel(*second);
  loop.cancel(*first);
  loop.cancel(*first);
  loop.cancel(999);
  closed.unlock();
  EXPECT_EQ(a.wait().finish, FinishReason::cancelled);
  EXPECT_EQ(b.wait().finish, FinishReason::cancelled);
  loop.drain();
  EXPECT_EQ(c.wait().finish, FinishReason::length);
  EXPECT_EQ(loop.submit(request({4}, 5), d.sink()).error().code, Errc::exhausted) << "draining";
  const LoopStats s = loop.stats();
  EXPECT_EQ(s.blocks_used, 0);
  EXPECT_EQ(s.requests_cancelled, 2u);
  EXPECT_EQ(s.requests_finished, 1u);
  EXPECT_LE(a.wait().output_tokens, 3) << "cancelled within a step";
  EXPECT_EQ(loop.integrity(), "");
}

TEST(EngineLoop, ADeviceErrorFailsTheBatchAndTheLoopGoesOn) {
  MockConfig config;
  MockExecutor model(config);
  int calls = 0;
  model.before = [&](const Batch&) {
    if (++calls == 3) throw DeviceError("injected");
  };
  EngineLoop loop(model, nullptr, {});
  const OutputPiece got = run(loop, request({1, 2, 3, 4, 5}, 10));
  EXPECT_EQ(got.finish, FinishReason::error);
  EXPECT_EQ(got.error->code, Errc::internal);
  EXPECT_EQ(got.tokens.size(), 2u);
  const Request r = request({1, 2, 3, 4, 5}, 10);
  const OutputPiece again = run(loop, r);
  EXPECT_EQ(again.tokens, tokens_alone(config, r));
  EXPECT_EQ(again.cached_tokens, 0) << "blocks of a failed request are not reused";
  EXPECT_EQ(loop.integrity(), "");
}

TEST(EngineLoop, AnErrorOfItsOwnStopsItForGoodAndSaysWhy) {
  class Broken : public MockExecutor {
   public:
    using MockExecutor::MockExecutor;
    uint64_t rope_variant(int32_t prompt_length) const override {  // is asked outside of any step
      if (prompt_length == 3) throw std::logic_error("planted");
      return 0;
    }
  };
  const MockConfig config;
  Broken model(config);
  EngineLoop loop(model, nullptr, {});
  EXPECT_EQ(run(loop, request({1, 2}, 4)).finish, FinishReason::length);
  EXPECT_EQ(loop.failure(), "");
  const OutputPiece last = run(loop, request({1, 2, 3}, 4));
  EXPECT_EQ(last.finish, FinishReason::error);
  EXPECT_EQ(loop.failure(), "planted");
  const auto refused = loop.submit(request({1, 2}, 4), {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Errc::internal);
}

TEST(EngineLoop, NanLogitsEndOnlyTheirRequest) {
  const MockConfig config;
  MockExecutor model(config);
  model.change = [](const BatchSeq& s, std::span<float> row) {
    if (s.rope_length == 5 && s.past >= 8) row[3] = std::nanf("");
  };
  EngineLoop loop(model, nullptr, {});
  Collector bad;
  std::vector<Collector> good(6);
  ASSERT_TRUE(loop.submit(request({1, 2, 3, 4, 5}, 20), bad.sink()).ok());
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(loop.submit(request({i, 7, 7}, 20), good[i].sink()).ok());
  const OutputPiece failed = bad.wait();
  EXPECT_EQ(failed.finish, FinishReason::error);
  EXPECT_NE(failed.error->message.find("numerical_error"), std::string::npos);
  EXPECT_EQ(failed.tokens.size(), 4u);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(good[i].wait().tokens, tokens_alone(config, request({i, 7, 7}, 20)));
  EXPECT_EQ(loop.stats().requests_failed, 1u);
  EXPECT_EQ(loop.integrity(), "");
}

TEST(EngineLoop, ThreadsSubmitAndCancelAtRandom) {
  for (const auto policy : {SchedulerPolicy::max_utilization, SchedulerPolicy::guaranteed_no_evict}) {
    MockConfig config{.windows = {0, 7}};
    config.options.num_blocks = 40;
    MockExecutor model(config);
    EngineLoop loop(model, letters(), {.policy = policy});
    std::atomic<int> finished = 0, cancelled = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(t);
        for (int i = 0; i < 250; ++i) {
          Request r = request({}, 1 + random() % 25);
          for (int n = 1 + random() % 30; n-- > 0;) r.prompt.push_back(n % 3 ? 5 : random() % 24);
          r.sampling.temperature = 1;
          r.sampling.seed = random();
          Collector c;
          const auto ticket = loop.submit(r, c.sink());
          ASSERT_TRUE(ticket.ok()) << ticket.error().message;
          if (random() % 3 == 0) loop.cancel(*ticket);
          const OutputPiece got = c.wait();
          const auto want = tokens_alone(config, r);
          if (got.finish == FinishReason::cancelled) {
            ++cancelled;
            EXPECT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), want.begin()));
          } else {
            ++finished;
            EXPECT_EQ(got.tokens, want);
          }
        }
      });
    }
    for (auto& thread : threads) thread.join();
    loop.drain();
    EXPECT_EQ(finished + cancelled, 1000);
    EXPECT_EQ(loop.stats().blocks_used, 0);
    EXPECT_EQ(loop.integrity(), "");
  }
}

TEST(EngineLoop, DestructionCancelsWhatIsLeft) {
  MockExecutor model({});
  std::vector<Collector> collectors(12);
  {
    EngineLoop loop(model, nullptr, {.max_batch_size = 2});
    for (auto& c : collectors) ASSERT_TRUE(loop.submit(request({1, 2}, 200), c.sink()).ok());
  }
  for (auto& c : collectors) EXPECT_NE(c.wait().finish, FinishReason::none);
}

TEST(EngineLoop, TextOfARealTokenizer) {
  auto tokenizer = Tokenizer::load(std::filesystem::path(PINION_SOURCE_DIR) / "demo");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  MockConfig config;
  config.vocab = tokenizer->vocab_size();
  MockExecutor model(config);
  EngineLoop loop(model, &*tokenizer, {});
  Request r = request(tokenizer->encode("Hello there", false), 20);
  const OutputPiece got = run(loop, r);
  EXPECT_EQ(got.text, tokenizer->decode(got.tokens, true));
  ASSERT_GT(got.text.size(), 8u);
  r.sampling.stop = {got.text.substr(4, 4)};
  EXPECT_EQ(run(loop, r).text, got.text.substr(0, got.text.find(r.sampling.stop[0])));
}

}  // namespace
}  // namespace pinion
