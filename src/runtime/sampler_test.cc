// The sampler against straightforward computations of the same distributions.
#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace pinion {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> random_row(int32_t vocab, uint64_t seed, float spread = 2) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> row(vocab);
  for (float& x : row) x = normal(random);
  return row;
}

int32_t sample(const std::vector<float>& row, const SamplingParams& p, uint64_t seed = 0, int32_t position = 0,
               std::vector<int32_t> prompt = {}, std::vector<int32_t> output = {}, std::vector<int32_t> ending = {}) {
  Sampler sampler(static_cast<int32_t>(row.size()));
  TokenHistory history;
  for (const int32_t t : prompt) history.add_prompt(t);
  for (const int32_t t : output) history.add_output(t);
  prompt.insert(prompt.end(), output.begin(), output.end());
  auto result = sampler.sample(row, p, {.seed = seed, .ending = ending}, history, prompt, position);
  EXPECT_TRUE(result.ok()) << result.error().message;
  return result->token;
}

// The definition, written plainly: softmax, then min_p, top_k, top_p by sorting everything.
std::vector<double> expected(const std::vector<float>& row, const SamplingParams& p) {
  std::vector<double> probability(row.size());
  const double most = *std::ranges::max_element(row);
  for (size_t i = 0; i < row.size(); ++i) probability[i] = std::exp((row[i] - most) / p.temperature);
  for (double& x : probability)
    if (x < p.min_p) x = 0;  // the best has 1
  std::vector<size_t> order(row.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return row[a] > row[b]; });
  if (p.top_k > 0)
    for (size_t i = p.top_k; i < order.size(); ++i) probability[order[i]] = 0;
  double sum = std::accumulate(probability.begin(), probability.end(), 0.0), before = 0;
  for (const size_t i : order) {
    if (before >= p.top_p * sum)
      probability[i] = 0;
    else
      before += probability[i];
  }
  sum = std::accumulate(probability.begin(), probability.end(), 0.0);
  for (double& x : probability) x /= sum;
  return probability;
}

TEST(Sampler, DrawsFromTheDefinedDistribution) {
  const std::vector<SamplingParams> cases = {
      {.temperature = 1},
      {.temperature = 0.5f},
      {.temperature = 2, .top_k = 5},
      {.temperature = 1, .top_p = 0.7f},
      {.temperature = 1.3f, .min_p = 0.2f},
      {.temperature = 0.9f, .top_k = 12, .top_p = 0.8f, .min_p = 0.05f},
  };
  constexpr int kDraws = 40000;
  const auto row = random_row(40, 3);
  for (const SamplingParams& p : cases) {
    const auto want = expected(row, p);
    std::vector<int> counts(row.size());
    for (int i = 0; i < kDraws; ++i) ++counts[sample(row, p, 17, i)];
    double chi2 = 0;
    int bins = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      if (want[i] == 0) {
        EXPECT_EQ(counts[i], 0) << "token " << i << " was ruled out";
      }
      if (want[i] * kDraws < 5) continue;
      chi2 += std::pow(counts[i] - want[i] * kDraws, 2) / (want[i] * kDraws);
      ++bins;
    }
    EXPECT_LT(chi2, bins + 5 * std::sqrt(2.0 * bins)) << "top_k " << p.top_k << " top_p " << p.top_p;
  }
}

TEST(Sampler, TopPOverALargeVocabularySortsOnlyWhatItNeeds) {
  const auto flat = random_row(50000, 5, 0.3f);  // top_p reaches deep: several pieces are sorted
  const SamplingParams p{.temperature = 1, .top_p = 0.6f};
  const auto want = expected(flat, p);
  for (int i = 0; i < 200; ++i) EXPECT_GT(want[sample(flat, p, 1, i)], 0);
}

TEST(Sampler, GreedyTakesTheLowestIdOfEquals) {
  EXPECT_EQ(sample({1, 3, 2, 3}, {.temperature = 0}), 1);
  EXPECT_EQ(sample({3, 3, 2, 3}, {.temperature = 1, .top_k = 1}), 0);
  EXPECT_EQ(sample({-2, -2}, {.temperature = 0}), 0);
}

TEST(Sampler, TinyTemperaturesAreGreedy) {
  for (int i = 0; i < 50; ++i) EXPECT_EQ(sample({1, 8, 7.9f}, {.temperature = 1e-30f}, 9, i), 1);
}

TEST(Sampler, SameSeedAndPositionSameToken) {
  const auto row = random_row(1000, 8);
  std::vector<int32_t> first, other_seed;
  for (int i = 0; i < 50; ++i) {
    first.push_back(sample(row, {.temperature = 1}, 5, i));
    EXPECT_EQ(first.back(), sample(row, {.temperature = 1}, 5, i));
    other_seed.push_back(sample(row, {.temperature = 1}, 6, i));
  }
  EXPECT_NE(first, other_seed);
}

TEST(Sampler, UniformIsUniform) {
  std::vector<int> bins(64);
  for (uint64_t seed = 0; seed < 64; ++seed)
    for (uint64_t i = 0; i < 1000; ++i) ++bins[static_cast<size_t>(Sampler::uniform(seed, i) * 64)];
  double chi2 = 0;
  for (const int n : bins) chi2 += (n - 1000.0) * (n - 1000.0) / 1000.0;
  EXPECT_LT(chi2, 63 + 5 * std::sqrt(126.0));
}

TEST(Sampler, Penalties) {
  const SamplingParams greedy{.temperature = 0};
  SamplingParams p = greedy;
  p.repetition_penalty = 2;  // prompt and output; negative logits are multiplied
  EXPECT_EQ(sample({4, 3, -1}, p, 0, 0, {0}), 1);
  EXPECT_EQ(sample({4, 3, -1}, p, 0, 0, {0}, {1}), 0);
  EXPECT_EQ(sample({-1, -1.5f}, p, 0, 0, {0}), 1);
  p = greedy;
  p.presence_penalty = 1.5f;  // the output only
  EXPECT_EQ(sample({4, 3, 0}, p, 0, 0, {0}), 0);
  EXPECT_EQ(sample({4, 3, 0}, p, 0, 1, {}, {0}), 1);
  p = greedy;
  p.frequency_penalty = 0.6f;
  EXPECT_EQ(sample({4, 3, 0}, p, 0, 1, {}, {0}), 0);
  EXPECT_EQ(sample({4, 3, 0}, p, 0, 2, {}, {0, 0}), 1);
}

TEST(Sampler, BiasBadWordsAndMinTokens) {
  SamplingParams p{.temperature = 0};
  p.logit_bias = {{2, 10}, {0, -kInf}};
  EXPECT_EQ(sample({5, 4, 0}, p), 2);
  p = {.temperature = 0};
  p.bad_words = {{0}, {3, 1}};
  EXPECT_EQ(sample({5, 4, 0, 0}, p), 1);
  EXPECT_EQ(sample({5, 4, 1, 0}, p, 0, 0, {3}), 2) << "3 1 would be completed";
  EXPECT_EQ(sample({5, 4, 1, 0}, p, 0, 1, {3}, {2}), 1);
  p = {.temperature = 0};
  p.min_tokens = 2;
  EXPECT_EQ(sample({5, 4}, p, 0, 1, {}, {1}, {0}), 1);
  EXPECT_EQ(sample({5, 4}, p, 0, 2, {}, {1, 1}, {0}), 0);
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  const auto row = random_row(30, 11);
  double sum = 0;
  for (const float x : row) sum += std::exp(static_cast<double>(x));
  SamplingParams p{.temperature = 0.3f};
  p.logit_bias = {{7, 100}};
  p.logprobs = 4;
  Sampler sampler(30);
  const auto result = sampler.sample(row, p, {}, {}, {}, 0);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->token, 7);
  EXPECT_NEAR(result->logprob.logprob, row[7] - std::log(sum), 1e-5);
  std::vector<int32_t> order(30);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return row[a] > row[b]; });
  EXPECT_EQ(result->logprob.rank, std::ranges::find(order, 7) - order.begin() + 1);
  ASSERT_EQ(result->logprob.top.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(result->logprob.top[i].first, order[i]);
    EXPECT_NEAR(result->logprob.top[i].second, row[order[i]] - std::log(sum), 1e-5);
  }
  EXPECT_EQ(Sampler::logprob(row, 7, 100)->top.size(), 30u);
}

TEST(Sampler, BrokenLogitsAreAnError) {
  Sampler sampler(3);
  const TokenHistory history;
  const std::vector<std::vector<float>> rows = {{1, std::nanf(""), 2}, {1, kInf, 2}, {-kInf, -kInf, -kInf}};
  for (const auto& row : rows)
    for (const float temperature : {0.f, 1.f}) {
      const auto result = sampler.sample(row, {.temperature = temperature}, {}, history, {}, 0);
      ASSERT_FALSE(result.ok());
      EXPECT_NE(result.error().message.find("numerical_error"), std::string::npos);
    }
  SamplingParams p{.temperature = 1};
  p.bad_words = {{0}, {1}, {2}};
  EXPECT_FALSE(sampler.sample(std::vector<float>{1, 2, 3}, p, {}, history, {}, 0).ok());
  EXPECT_EQ(sample({-kInf, 1, -kInf}, {.temperature = 1}), 1);
}

TEST(Sampler, ValidateNamesTheField) {
  const auto refused = [](std::string_view field, auto change) {
    SamplingParams p;
    change(p);
    const auto status = validate(p, 10);
    ASSERT_FALSE(status.ok()) << field;
    EXPECT_NE(status.error().message.find(field), std::string::npos) << status.error().message;
  };
  EXPECT_TRUE(validate({}, 10).ok());
  refused("temperature", [](auto& p) { p.temperature = -1; });
  refused("temperature", [](auto& p) { p.temperature = std::nanf(""); });
  refused("top_p", [](auto& p) { p.top_p = 0; });
  refused("top_p", [](auto& p) { p.top_p = std::nanf(""); });
  refused("top_k", [](auto& p) { p.top_k = -1; });
  refused("min_p", [](auto& p) { p.min_p = 2; });
  refused("repetition_penalty", [](auto& p) { p.repetition_penalty = 0; });
  refused("presence_penalty", [](auto& p) { p.presence_penalty = kInf; });
  refused("frequency_penalty", [](auto& p) { p.frequency_penalty = std::nanf(""); });
  refused("logit_bias", [](auto& p) { p.logit_bias = {{10, 1.f}}; });
  refused("logit_bias", [](auto& p) { p.logit_bias = {{-1, 1.f}}; });
  refused("bad_words", [](auto& p) { p.bad_words = {{}}; });
  refused("bad_words", [](auto& p) { p.bad_words = {{1, 99}}; });
  refused("stop_token_ids", [](auto& p) { p.stop_token_ids = {-5}; });
  refused("max_tokens", [](auto& p) { p.max_tokens = 0; });
  refused("min_tokens", [](auto& p) { p.min_tokens = 17; });
  refused("logprobs", [](auto& p) { p.logprobs = 1000; });
  refused("prompt_logprobs", [](auto& p) { p.prompt_logprobs = -2; });
}

}  // namespace
}  // namespace pinion
