// Ten thousand random requests through the engine loop on a device with memory of its own, a third of them cancelled at
// some moment: no block is lost, and a request that ran among the others has the tokens that it has alone.
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <numeric>
#include <random>

#include "compiled_model.h"
#include "device_backend.h"
#include "runtime/sampler.h"
#include "test_data.h"

namespace pinion {
namespace {

constexpr int kRequests = 10'000, kCompared = 64;

Request random_request(uint64_t seed, int32_t vocab) {
  std::mt19937_64 random(seed);
  Request r;
  for (auto n = 1 + random() % 90; n-- > 0;) {
    r.prompt.push_back(static_cast<int32_t>(n % 3 != 0 ? n % 7 : random() % vocab));  // prefixes that others share
  }
  r.sampling.max_tokens = 1 + static_cast<int32_t>(random() % 30);
  r.sampling.temperature = random() % 4 == 0 ? 0.0f : 0.9f;
  r.sampling.top_k = random() % 3 == 0 ? 5 : 0;
  r.sampling.top_p = random() % 3 == 0 ? 0.8f : 1.0f;
  r.sampling.seed = random();
  r.sampling.ignore_eos = random() % 2 == 0;
  return r;
}

TEST(DeviceServing, RandomRequestsLoseNoBlock) {
  const Backend* backend = device_backend();
  if (backend == nullptr) GTEST_SKIP() << "no device with memory of its own";
  CompiledModel model(golden_dir() / "families" / "llama3_gqa", *backend, {.block_size = 16, .deterministic = true},
                      {.num_blocks = 160, .max_batch_size = 48, .max_num_tokens = 256, .max_seq_len = 128});
  const int32_t vocab = model.executor().vocab_size();
  for (const auto policy : {SchedulerPolicy::max_utilization, SchedulerPolicy::guaranteed_no_evict}) {
    EngineLoop loop(model.executor(), TextDecoderFactory(), {.max_batch_size = 48, .policy = policy});
    std::mutex mutex;
    std::condition_variable changed;
    int in_flight = 0, failed = 0;
    std::vector<std::vector<int32_t>> tokens(kCompared);
    std::vector<bool> whole(kCompared);
    std::mt19937_64 random(17);
    for (int i = 0; i < kRequests; ++i) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return in_flight < 96; });
        ++in_flight;
      }
      const auto ticket = loop.submit(random_request(i, vocab), [&, i](OutputPiece piece) {
        if (i < kCompared) tokens[i].insert(tokens[i].end(), piece.tokens.begin(), piece.tokens.end());
        if (piece.finish == FinishReason::none) return;
        const std::lock_guard lock(mutex);
        failed += piece.finish == FinishReason::error;
        if (i < kCompared) whole[i] = piece.finish != FinishReason::cancelled;
        --in_flight;
        changed.notify_all();
      });
      ASSERT_TRUE(ticket.ok()) << ticket.error().message;
      if (random() % 3 == 0) loop.cancel(random() % 2 == 0 ? *ticket : *ticket - random() % 64);
    }
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return in_flight == 0; });
    }
    EXPECT_EQ(failed, 0);
    EXPECT_EQ(loop.stats().blocks_used, 0);
    EXPECT_EQ(loop.integrity(), "");
    EXPECT_GT(loop.stats().requests_cancelled, 1000u);
    for (int i = 0; i < kCompared; ++i) {
      const Answer alone = ask(loop, {random_request(i, vocab)}).at(0);
      if (whole[i]) {
        EXPECT_EQ(tokens[i], alone.tokens) << i;
      } else {
        ASSERT_LE(tokens[i].size(), alone.tokens.size());
        EXPECT_TRUE(std::equal(tokens[i].begin(), tokens[i].end(), alone.tokens.begin())) << i;
      }
    }
    loop.drain();
  }
}

// Prompts that together are larger than the pool come back from the host again and again, some of them cancelled while
// their blocks are on the way: whoever finishes has the tokens of an engine without a host tier.
TEST(DeviceServing, TheHostTierChangesNoToken) {
  const Backend* backend = device_backend();
  if (backend == nullptr) GTEST_SKIP() << "no device with memory of its own";
  constexpr int kPrompts = 60, kAsked = 4000;
  for (const char* family : {"llama3_gqa", "mistral_swa"}) {
    SCOPED_TRACE(family);
    CompiledModel model(
        golden_dir() / "families" / family, *backend, {.block_size = 16, .deterministic = true},
        {.num_blocks = 160, .max_batch_size = 24, .max_num_tokens = 256, .max_seq_len = 128, .host_blocks = 1000});
    const int32_t vocab = model.executor().vocab_size();
    std::vector<Request> requests;
    for (int i = 0; i < kPrompts; ++i) {
      Request& r = requests.emplace_back(random_request(i, vocab));
      for (int32_t n = 0; std::ssize(r.prompt) < 84; ++n) r.prompt.push_back((n * n + i) % vocab);
    }
    std::vector<std::vector<int32_t>> want;
    {
      EngineLoop plain(model.executor(), TextDecoderFactory(), {.prefix_reuse = false});
      for (const Request& r : requests) want.push_back(ask(plain, {r}).at(0).tokens);
    }
    EngineLoop loop(model.executor(), TextDecoderFactory(), {.max_batch_size = 24});
    std::mutex mutex;
    std::condition_variable changed;
    int in_flight = 0, wrong = 0, failed = 0;
    std::vector<std::vector<int32_t>> tokens(kAsked);
    std::mt19937_64 random(29);
    for (int i = 0; i < kAsked; ++i) {
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return in_flight < 32; });
        ++in_flight;
      }
      const auto which = random() % kPrompts;
      const auto ticket = loop.submit(requests[which], [&, i, which](OutputPiece piece) {
        tokens[i].insert(tokens[i].end(), piece.tokens.begin(), piece.tokens.end());
        if (piece.finish == FinishReason::none) return;
        const std::lock_guard lock(mutex);
        failed += piece.finish == FinishReason::error;
        wrong += piece.finish != FinishReason::cancelled && tokens[i] != want[which];
        --in_flight;
        changed.notify_all();
      });
      ASSERT_TRUE(ticket.ok()) << ticket.error().message;
      if (random() % 4 == 0) loop.cancel(*ticket - random() % 16);
    }
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return in_flight == 0; });
    }
    EXPECT_EQ(failed, 0);
    EXPECT_EQ(wrong, 0);
    EXPECT_GT(loop.stats().host_hit_blocks, 300u);
    EXPECT_EQ(loop.stats().blocks_used, 0);
    EXPECT_EQ(loop.integrity(), "");
  }
}

// Greedy rows and drawn ones in one step, recorded and not: the tokens that the host's sampler takes from the logits of
// the same step. A plain head, one with a bias, and logits that are scaled or capped behind it.
TEST(DeviceServing, StepsChooseTheTokensOfTheirLogits) {
  const Backend* backend = device_backend();
  if (backend == nullptr) GTEST_SKIP() << "no device with memory of its own";
  for (const char* family : {"llama3_gqa", "phi2", "granite", "gemma2"}) {
    CompiledModel model(golden_dir() / "families" / family, *backend, {.dtype = DType::bf16, .block_size = 16},
                        {.num_blocks = 64, .max_batch_size = 24, .max_num_tokens = 256, .max_seq_len = 64});
    EngineExecutor& e = model.executor();
    const int32_t vocab = e.vocab_size();
    const size_t groups = e.kv_groups().size();
    Sampler sampler(vocab);
    for (const int32_t n : {1, 5, 17, 24}) {
      std::vector<int32_t> ids(n * 10), blocks(n * groups);
      std::iota(blocks.begin(), blocks.end(), 0);
      for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * i * 31 + i) % vocab;
      for (const int32_t past : {0, 9}) {  // a prompt of 9 tokens, then a decode step
        Batch batch;
        std::vector<RowSampling> rows;
        for (int32_t s = 0; s < n; ++s) {
          batch.seqs.push_back({.tokens = std::span(ids).subspan(s * 10 + past, past == 0 ? 9 : 1),
                                .past = past,
                                .rope_length = 9,
                                .blocks = {}});
          for (size_t g = 0; g < groups; ++g) {  // a page each
            batch.seqs.back().blocks.push_back(std::span(blocks).subspan(s * groups + g, 1));
          }
          rows.push_back({.temperature = s % 3 == 1 ? 0.9f : 0, .uniform = Sampler::uniform(s, 0)});
        }
        const auto at = e.forward(batch);
        const std::vector<float> logits(at.begin(), at.end());
        const auto tokens = e.forward_sampled(batch, rows);
        for (int32_t s = 0; s < n; ++s) {
          const auto want =
              sampler.sample(std::span(logits).subspan(s * vocab, vocab), {.temperature = rows[s].temperature},
                             {.seed = static_cast<uint64_t>(s), .ending = {}}, {}, {}, 0);
          ASSERT_TRUE(want.ok()) << want.error().message;
          EXPECT_EQ(tokens[s], want->token) << family << " row " << s << " of " << n << " past " << past;
        }
      }
    }
  }
}

}  // namespace
}  // namespace pinion
