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
  const auto token = [&] { return static_cast<int32_t>(random() % vocab); };
  if (random() % 4 == 0) r.sampling.repetition_penalty = 1.1f;
  if (random() % 4 == 0) r.sampling.presence_penalty = 0.5f, r.sampling.frequency_penalty = 0.2f;
  for (auto n = random() % 4 == 0 ? 9 : 0; n-- > 0;) r.sampling.logit_bias.emplace_back(token(), 2.0f);
  for (auto n = random() % 4 == 0 ? 200 : 0; n-- > 0;) r.sampling.bad_words.push_back({token(), token()});
  if (random() % 4 == 0) r.sampling.min_tokens = r.sampling.max_tokens / 2;
  if (random() % 4 == 0) r.sampling.logprobs = static_cast<int32_t>(random() % 21);
  return r;
}

// The same executor with the tokens chosen by the host.
class HostChooses : public Executor {
 public:
  explicit HostChooses(Executor& e) : e_(e) {}
  int32_t vocab_size() const override { return e_.vocab_size(); }
  int32_t context_length() const override { return e_.context_length(); }
  int32_t block_size() const override { return e_.block_size(); }
  std::span<const KvGroupInfo> kv_groups() const override { return e_.kv_groups(); }
  const ExecutorOptions& options() const override { return e_.options(); }
  std::span<const int32_t> eos_token_ids() const override { return e_.eos_token_ids(); }
  uint64_t rope_variant(int32_t prompt_length) const override { return e_.rope_variant(prompt_length); }
  std::span<const float> forward(const Batch& batch) override { return e_.forward(batch); }
  void copy_block(int32_t from, int32_t to) override { e_.copy_block(from, to); }

 private:
  Executor& e_;
};

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

// With every parameter of a request, many at once, some preempted.
TEST(DeviceServing, TheDeviceChoosesTheHostsTokens) {
  const Backend* backend = device_backend();
  if (backend == nullptr) GTEST_SKIP() << "no device with memory of its own";
  CompiledModel model(golden_dir() / "families" / "llama3_gqa", *backend, {.block_size = 16, .deterministic = true},
                      {.num_blocks = 100, .max_batch_size = 24, .max_num_tokens = 256, .max_seq_len = 128});
  std::vector<Request> requests;
  for (int i = 0; i < 400; ++i) requests.push_back(random_request(1000 + i, model.executor().vocab_size()));
  HostChooses host(model.executor());
  std::vector<Answer> want, got;
  {
    EngineLoop loop(host, TextDecoderFactory(), {.max_batch_size = 24});
    want = ask(loop, requests);
  }
  EngineLoop loop(model.executor(), TextDecoderFactory(), {.max_batch_size = 24});
  got = ask(loop, requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    const SamplingParams& p = requests[i].sampling;
    EXPECT_EQ(got[i].error, want[i].error) << i;
    EXPECT_EQ(got[i].tokens, want[i].tokens)
        << "request " << i << " temperature " << p.temperature << " repetition " << p.repetition_penalty << " presence "
        << p.presence_penalty << " biases " << p.logit_bias.size() << " bad words " << p.bad_words.size()
        << " at least " << p.min_tokens << " top_k " << p.top_k << " top_p " << p.top_p;
    ASSERT_EQ(got[i].logprobs.size(), want[i].logprobs.size()) << i;
    for (size_t t = 0; t < got[i].logprobs.size(); ++t) {
      const TokenLogprob &a = got[i].logprobs[t], &b = want[i].logprobs[t];
      EXPECT_EQ(a.rank, b.rank) << i << ", token " << t;
      EXPECT_NEAR(a.logprob, b.logprob, 1e-5) << i << ", token " << t;
      ASSERT_EQ(a.top.size(), b.top.size()) << i << ", token " << t;
      for (size_t k = 0; k < a.top.size(); ++k) {
        EXPECT_EQ(a.top[k].first, b.top[k].first) << i << ", token " << t << ", place " << k;
        EXPECT_NEAR(a.top[k].second, b.top[k].second, 1e-5) << i << ", token " << t << ", place " << k;
      }
    }
  }
  EXPECT_EQ(loop.integrity(), "");
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
