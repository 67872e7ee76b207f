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

INSTANTIATE_TEST_SUITE_P(Families, GoldenLoop,
                         testing::Values("llama3_gqa", "llama_dynamic_ntk", "llama_yarn", "mistral_swa", "qwen2",
                                         "qwen3"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace pinion
