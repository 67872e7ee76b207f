// The loop over an executor that chooses tokens itself: the same tokens, and rows of logits only where a request needs
// them on the host.
#include <gtest/gtest.h>

#include <future>

#include "runtime/engine_loop.h"
#include "runtime/mock_executor.h"

namespace pinion {
namespace {

// Samples as a device does, from the mock's rows.
class SamplingExecutor final : public MockExecutor {
 public:
  using MockExecutor::MockExecutor;
  bool samples() const override { return true; }
  std::span<const int32_t> forward_sampled(const Batch& batch, std::span<const RowSampling> rows) override {
    const auto logits = MockExecutor::forward(batch);
    check(logits.size() == rows.size() * vocab_size(), "a row, a sampling");
    tokens.clear();
    for (const RowSampling& r : rows) {
      if (broken) {
        tokens.push_back(kNotFinite);
        continue;
      }
      // The draw's place is given; the host's sampler is asked for the seed that leads there.
      const auto row = logits.subspan(tokens.size() * vocab_size(), vocab_size());
      double total = 0, reached = 0;
      for (const float x : row) total += std::exp(static_cast<double>(x) / r.temperature);
      int32_t token = 0;
      while (token + 1 < vocab_size()) {
        reached += std::exp(static_cast<double>(row[token]) / r.temperature);
        if (r.uniform * total < reached) break;
        ++token;
      }
      tokens.push_back(token);
    }
    ++sampled;
    return tokens;
  }
  std::span<const float> forward(const Batch& batch) override {
    ++copied;
    return MockExecutor::forward(batch);
  }
  std::vector<int32_t> tokens;
  int sampled = 0, copied = 0;
  bool broken = false;
};

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
    all->error = piece.error;
    if (piece.finish != FinishReason::none) done->set_value(*all);
  });
  EXPECT_TRUE(ticket.ok());
  return future.get();
}

TEST(DeviceSampling, GivesTheHostsTokensAndCopiesNoRows) {
  const MockConfig config;
  SamplingExecutor executor(config);
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  for (int32_t n : {1, 5, 20}) {
    EXPECT_EQ(run(loop, request(n, 11 + n)).tokens, tokens_alone(config, request(n, 11 + n))) << n;
  }
  EXPECT_EQ(executor.copied, 0);
  EXPECT_GT(executor.sampled, 0);
}

TEST(DeviceSampling, LeavesWhatItCannotDoToTheHost) {
  const MockConfig config;
  SamplingExecutor executor(config);
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  Request penalised = request(5, 3);
  penalised.sampling.repetition_penalty = 1.3f;
  EXPECT_EQ(run(loop, penalised).tokens, tokens_alone(config, penalised));
  EXPECT_EQ(executor.sampled, 0);
  Request logprobs = request(5, 3);
  logprobs.sampling.logprobs = 2;
  EXPECT_EQ(run(loop, logprobs).tokens, tokens_alone(config, logprobs));
  EXPECT_EQ(executor.sampled, 0);
}

TEST(DeviceSampling, ABrokenRowFailsItsRequest) {
  SamplingExecutor executor{MockConfig{}};
  executor.broken = true;
  EngineLoop loop(executor, static_cast<const Tokenizer*>(nullptr), {});
  const OutputPiece end = run(loop, request(5, 3));
  ASSERT_TRUE(end.error.has_value());
  EXPECT_NE(end.error->message.find("not finite"), std::string::npos);
  EXPECT_EQ(loop.integrity(), "");
}

}  // namespace
}  // namespace pinion
