// The goldens through the engine loop: greedy tokens and log-probabilities as transformers has them, and not a bit
// of difference between a prompt that is computed and one that is found in the cache, whole or in chunks.
#include <gtest/gtest.h>

#include <cmath>

#include "backend/all/backends.h"
#include "checkpoint/safetensors.h"
#include "compiled_model.h"
#include "golden_file.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

double log_sum_exp(std::span<const float> row) {
  const double most = *std::ranges::max_element(row);
  double sum = 0;
  for (const float v : row) sum += std::exp(v - most);
  return most + std::log(sum);
}

Request greedy(std::vector<int32_t> prompt, int32_t max_tokens) {
  Request r{.prompt = std::move(prompt), .sampling = {}};
  r.sampling.temperature = 0;
  r.sampling.max_tokens = max_tokens;
  r.sampling.ignore_eos = true;
  r.sampling.logprobs = 20;
  return r;
}

class GoldenLoop : public testing::TestWithParam<std::string> {};

TEST_P(GoldenLoop, ReuseChangesNothing) {
  const fs::path dir = fs::path(PINION_GOLDEN_DIR) / "families" / GetParam();
  const CompiledModel model(dir, *find_backend("cpu"), {.dtype = DType::f32, .block_size = 16},
                            {.num_blocks = 64, .max_batch_size = 8, .max_num_tokens = 256, .max_outputs = 64});
  auto file = SafetensorsFile::open(dir / "golden.safetensors");
  ASSERT_TRUE(file.ok());
  const auto mid = read<int32_t>(*file, "mid.input_ids"), long_ids = read<int32_t>(*file, "long.input_ids");
  auto expected = read<int32_t>(*file, "mid.greedy");
  // With dynamic NTK transformers stretches the rotation anew once a sequence outgrows the context; a cache cannot.
  if (GetParam() == "llama_dynamic_ntk") expected.resize(48 - mid.size());
  const std::vector<Request> requests{greedy(mid, static_cast<int32_t>(expected.size())), greedy(long_ids, 16)};

  EngineLoop plain(model.executor(), nullptr, {.prefix_reuse = false});
  std::vector<Answer> want;
  for (const Request& r : requests) want.push_back(ask(plain, {r})[0]);
  ask(plain, requests);
  EXPECT_EQ(plain.stats().cached_tokens, 0u);
  EXPECT_EQ(want[0].tokens, expected);

  for (const int32_t chunk : {16, 512}) {
    EngineLoop loop(model.executor(), nullptr, {.chunk_tokens = chunk});
    const std::vector<Answer> cold = ask(loop, requests), warm = ask(loop, requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_TRUE(same(cold[i], want[i])) << "request " << i << " computed, chunks of " << chunk;
      EXPECT_TRUE(same(warm[i], want[i])) << "request " << i << " from the cache, chunks of " << chunk;
      EXPECT_GE(warm[i].cached_tokens, 32) << "request " << i;
    }
  }

  // Log-probabilities of the prompt: computed by a request that reuses nothing, then with the prompt cached.
  Request scored = requests[1];
  scored.sampling.prompt_logprobs = 20;
  EngineLoop loop(model.executor(), nullptr, {});
  const Answer first = ask(loop, {scored})[0], second = ask(loop, {scored})[0];
  EXPECT_TRUE(same(first, second));
  ASSERT_EQ(first.prompt_logprobs.size(), long_ids.size());
  const auto logits = read<float>(*file, "long.logits");  // of the last positions
  const auto vocab = static_cast<size_t>(model.executor().vocab_size());
  const size_t rows = logits.size() / vocab, skip = long_ids.size() - rows;
  for (size_t i = 0; i + 1 < rows; ++i) {
    const auto row = std::span(logits).subspan(i * vocab, vocab);
    const TokenLogprob& got = first.prompt_logprobs[skip + i + 1];
    EXPECT_EQ(got.token, long_ids[skip + i + 1]);
    EXPECT_NEAR(got.logprob, row[got.token] - log_sum_exp(row), 4e-3) << "position " << skip + i + 1;
    ASSERT_EQ(got.top.size(), 20u);
    for (const auto& [token, logprob] : got.top) EXPECT_NEAR(logprob, row[token] - log_sum_exp(row), 4e-3);
  }
}

// A prompt whose blocks others have pushed out of the pool: the host has them, of every kind of cache, and not a bit of
// the answer differs.
struct Cache {
  const char* family;
  DType kv_dtype = DType::f32;
};

class HostTier : public testing::TestWithParam<Cache> {};

TEST_P(HostTier, BringsBackWhatWasEvicted) {
  const fs::path dir = fs::path(PINION_GOLDEN_DIR) / "families" / GetParam().family;
  const CompiledModel model(
      dir, *find_backend("cpu"),
      {.dtype = DType::f32, .kv_dtype = GetParam().kv_dtype, .block_size = 16, .deterministic = true},
      {.num_blocks = 24, .max_batch_size = 8, .max_num_tokens = 64, .max_outputs = 64, .host_blocks = 400});
  auto file = SafetensorsFile::open(dir / "golden.safetensors");
  ASSERT_TRUE(file.ok());
  std::vector<int32_t> prompt = read<int32_t>(*file, "long.input_ids");
  prompt.resize(std::min<size_t>(prompt.size(), 90));
  const auto other = [&](int n) {
    std::vector<int32_t> p = prompt;
    std::ranges::rotate(p, p.begin() + n);
    return greedy(p, 16);
  };
  EngineLoop plain(model.executor(), nullptr, {.prefix_reuse = false});
  const Answer want = ask(plain, {greedy(prompt, 16)})[0];

  EngineLoop loop(model.executor(), nullptr, {});
  EXPECT_TRUE(same(ask(loop, {greedy(prompt, 16)})[0], want));
  for (int n = 1; n < 12; n += 3) ask(loop, {other(n), other(n + 1), other(n + 2)});
  const LoopStats before = loop.stats();
  EXPECT_GT(before.bytes_to_host, 0u);
  const Answer back = ask(loop, {greedy(prompt, 16)})[0];
  EXPECT_TRUE(same(back, want));
  const int32_t whole = (static_cast<int32_t>(prompt.size()) - 1) / 16 * 16;
  EXPECT_EQ(back.cached_tokens, whole);
  const LoopStats after = loop.stats();
  EXPECT_GT(after.host_hit_blocks, before.host_hit_blocks);
  EXPECT_GT(after.bytes_from_host, before.bytes_from_host);

  // Many at once, preempted as they grow: the answers are those of each alone.
  std::vector<Request> many;
  for (int n = 0; n < 12; ++n) many.push_back(other(n));
  const std::vector<Answer> together = ask(loop, many);
  for (int n = 0; n < 12; ++n) EXPECT_TRUE(same(together[n], ask(plain, {many[n]})[0])) << n;
}

INSTANTIATE_TEST_SUITE_P(Caches, HostTier,
                         testing::Values(Cache{"llama3_gqa"}, Cache{"llama3_gqa", DType::i8},
                                         Cache{"llama3_gqa", DType::f8_e4m3}, Cache{"mistral_swa"}, Cache{"gemma2"},
                                         Cache{"gemma3_text"}, Cache{"deepseek_v2"}),
                         [](const auto& info) {
                           return std::string(info.param.family) + "_" + std::string(name(info.param.kv_dtype));
                         });

INSTANTIATE_TEST_SUITE_P(Families, GoldenLoop,
                         testing::Values("llama3_gqa", "llama_dynamic_ntk", "llama_yarn", "mistral_swa", "qwen2",
                                         "qwen3"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace pinion
