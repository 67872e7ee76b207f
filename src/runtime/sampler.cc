#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/check.h"

namespace pinion {

namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

Error bad(std::string_view what, std::string_view field, std::string_view remedy) {
  return fail(Errc::invalid_argument, what, field, remedy);
}

Status check_ids(std::span<const int32_t> ids, int32_t vocab_size, std::string_view field) {
  for (const int32_t id : ids)
    if (id < 0 || id >= vocab_size)
      return bad("token id " + std::to_string(id) + " is outside the vocabulary", field,
                 "use ids from 0 to " + std::to_string(vocab_size - 1));
  return {};
}

// The largest logit; errors name what is wrong with the row.
Result<float> row_max(std::span<const float> logits) {
  float best = kImpossible;
  bool nan = false;
  for (const float x : logits) {
    nan |= std::isnan(x);
    best = std::max(best, x);
  }
  if (nan || best == std::numeric_limits<float>::infinity()) return not_finite_error();
  if (best == kImpossible) return fail(Errc::internal, "numerical_error: every token is impossible");
  return best;
}

void penalize(std::span<float> row, const SamplingParams& p, const TokenHistory& history) {
  if (!p.penalizes()) return;
  for (const auto& [token, count] : history.counts()) {
    float& x = row[token];
    x = x > 0 ? x / p.repetition_penalty : x * p.repetition_penalty;
    if (count > 0) x -= p.frequency_penalty * static_cast<float>(count) + p.presence_penalty;
  }
}

}  // namespace

Error not_finite_error() {
  return fail(Errc::internal, "numerical_error: the logits are not finite", {},
              "this request's input breaks the model's arithmetic; `pinion diff` names the first layer");
}

Error none_left_error() {
  return fail(Errc::internal, "no token is left to choose from", {},
              "bad_words, min_tokens, logit_bias and the penalties together rule out every token");
}

Status validate(const SamplingParams& p, int32_t vocab_size) {
  if (!(p.temperature >= 0) || std::isinf(p.temperature))
    return bad("temperature must be a number of 0 or more", "temperature", "0 is greedy, 1 the model's distribution");
  if (p.top_k < 0) return bad("top_k must be 0 or more", "top_k", "0 turns it off");
  if (!(p.top_p > 0 && p.top_p <= 1)) return bad("top_p must be above 0 and at most 1", "top_p", "1 turns it off");
  if (!(p.min_p >= 0 && p.min_p <= 1)) return bad("min_p must be between 0 and 1", "min_p", "0 turns it off");
  if (!(p.repetition_penalty > 0) || std::isinf(p.repetition_penalty))
    return bad("repetition_penalty must be above 0", "repetition_penalty", "1 turns it off");
  if (!std::isfinite(p.presence_penalty))
    return bad("presence_penalty must be a finite number", "presence_penalty", "0 turns it off");
  if (!std::isfinite(p.frequency_penalty))
    return bad("frequency_penalty must be a finite number", "frequency_penalty", "0 turns it off");
  for (const auto& [token, bias] : p.logit_bias) {
    PINION_OK(check_ids({{token}}, vocab_size, "logit_bias"));
    if (std::isnan(bias) || bias == std::numeric_limits<float>::infinity())
      return bad("a bias must be a number", "logit_bias", "-inf forbids a token, 100 all but forces it");
  }
  for (const auto& word : p.bad_words) {
    if (word.empty()) return bad("an empty token sequence", "bad_words", "leave it out");
    PINION_OK(check_ids(word, vocab_size, "bad_words"));
  }
  PINION_OK(check_ids(p.stop_token_ids, vocab_size, "stop_token_ids"));
  if (p.max_tokens < 1) return bad("max_tokens must be at least 1", "max_tokens", {});
  if (p.min_tokens < 0 || p.min_tokens > p.max_tokens)
    return bad("min_tokens must be between 0 and max_tokens", "min_tokens", {});
  const std::string most = "-1 for none, at most " + std::to_string(kMaxLogprobs);
  if (p.logprobs < -1 || p.logprobs > kMaxLogprobs) return bad("logprobs is out of range", "logprobs", most);
  if (p.prompt_logprobs < -1 || p.prompt_logprobs > kMaxLogprobs)
    return bad("prompt_logprobs is out of range", "prompt_logprobs", most);
  return {};
}

Sampler::Sampler(int32_t vocab_size) : row_(vocab_size) {}

double Sampler::uniform(uint64_t seed, uint64_t position) {
  // SplitMix64's finaliser over both numbers, twice: neighbouring seeds and positions come out unrelated.
  const auto mix = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  const uint64_t bits = mix(mix(seed + 0x9e3779b97f4a7c15u) + 0x9e3779b97f4a7c15u * (position + 1));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

Result<TokenLogprob> Sampler::logprob(std::span<const float> logits, int32_t token, int32_t top) {
  PINION_TRY(const float most, row_max(logits));
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x - most));
  const double log_sum = most + std::log(sum);
  const float own = logits[token];
  TokenLogprob result{.token = token, .logprob = static_cast<float>(own - log_sum)};
  for (size_t id = 0; id < logits.size(); ++id)
    result.rank += logits[id] > own || (logits[id] == own && static_cast<int32_t>(id) < token);
  if (top <= 0) return result;
  const auto better = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  std::vector<int32_t> best;  // a heap with the worst of the best in front
  const size_t want = std::min<size_t>(top, logits.size());
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    if (best.size() == want) {
      if (!better(id, best.front())) continue;
      std::ranges::pop_heap(best, better);
      best.pop_back();
    }
    best.push_back(id);
    std::ranges::push_heap(best, better);
  }
  std::ranges::sort(best, better);
  for (const int32_t id : best) result.top.emplace_back(id, static_cast<float>(logits[id] - log_sum));
  return result;
}

Result<Sampled> Sampler::sample(std::span<const float> logits, const SamplingParams& p, const SamplerState& state,
                                const TokenHistory& history, std::span<const int32_t> tokens, int32_t position) {
  check(logits.size() == row_.size(), "a row of logits has the vocabulary's size");
  PINION_OK(row_max(logits));
  std::ranges::copy(logits, row_.begin());

  for (const auto& word : p.bad_words) {
    const size_t before = word.size() - 1;
    if (before <= tokens.size() && std::equal(word.begin(), word.end() - 1, tokens.end() - before))
      row_[word.back()] = kImpossible;
  }
  if (position < p.min_tokens)
    for (const int32_t id : state.ending) row_[id] = kImpossible;
  for (const auto& [id, bias] : p.logit_bias) row_[id] += bias;
  penalize(row_, p, history);
  if (!row_max(row_)) return none_left_error();

  Sampled result;
  result.token = p.temperature == 0 ? static_cast<int32_t>(std::ranges::max_element(row_) - row_.begin())
                                    : draw(p, state.seed, position);
  if (p.logprobs >= 0) {
    PINION_TRY(result.logprob, logprob(logits, result.token, p.logprobs));
  }
  return result;
}

// Draws from row_: candidates_ are cut down by min_p, top_k and top_p, and then the cumulative sum is walked.
int32_t Sampler::draw(const SamplingParams& p, uint64_t seed, int32_t position) {
  const float most = *std::ranges::max_element(row_);
  // Temperatures below this leave weight on the largest logits only, and dividing by them may overflow.
  const double scale = 1.0 / std::max(p.temperature, 1e-5f);
  const auto weight = [&](float logit) { return std::exp((static_cast<double>(logit) - most) * scale); };
  const float least = p.min_p > 0 ? static_cast<float>(most + std::log(p.min_p) / scale) : kImpossible;
  candidates_.clear();
  for (int32_t id = 0; id < static_cast<int32_t>(row_.size()); ++id)
    if (row_[id] > kImpossible && row_[id] >= least) candidates_.push_back({row_[id], id});

  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < candidates_.size()) {
    std::ranges::nth_element(candidates_, candidates_.begin() + p.top_k - 1, better);
    candidates_.resize(p.top_k);
  }
  double sum = 0;
  for (const Candidate& c : candidates_) sum += weight(c.logit);
  if (p.top_p < 1) {
    // The best are sorted piece by piece until they hold top_p of the weight: mostly a few dozen of a large vocabulary.
    double kept = 0;
    size_t sorted = 0, keep = 0;
    for (size_t piece = 64; keep == sorted && sorted < candidates_.size() && kept < p.top_p * sum; piece *= 8) {
      const size_t end = std::min(candidates_.size(), sorted + piece);
      if (end < candidates_.size())
        std::ranges::nth_element(candidates_.begin() + sorted, candidates_.begin() + end, candidates_.end(), better);
      std::sort(candidates_.begin() + sorted, candidates_.begin() + end, better);
      for (sorted = end; keep < sorted && kept < p.top_p * sum; ++keep) kept += weight(candidates_[keep].logit);
    }
    candidates_.resize(std::max<size_t>(keep, 1));
    sum = kept;
  }
  // In the order of ids, so that the draw does not depend on how the candidates were found.
  if (p.top_p < 1 || p.top_k > 0) std::ranges::sort(candidates_, {}, &Candidate::id);
  const double target = uniform(seed, position) * sum;
  double reached = 0;
  for (const Candidate& c : candidates_) {
    reached += weight(c.logit);
    if (target < reached) return c.id;
  }
  // Rounding left the target at the very end: the last candidate that has weight.
  for (size_t i = candidates_.size(); i-- > 0;)
    if (weight(candidates_[i].logit) > 0) return candidates_[i].id;
  return candidates_.back().id;
}

}  // namespace pinion
