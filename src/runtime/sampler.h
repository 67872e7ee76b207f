// Sampler: a row of logits to a token. Randomness is a pure function of (seed, position in the output), so a result
// does not depend on the batch, on chunking or on preemption. Order of the operations, as in vLLM:
//   1 logprobs: log-softmax of the raw logits, before anything below
//   2 bad words: the token that would complete one becomes impossible
//   3 min_tokens: the end and stop tokens become impossible    4 logit_bias
//   5 repetition penalty (prompt and output), then frequency and presence penalties (output)
//   6 temperature 0: the largest logit, ties to the lowest id. Else divide by temperature, then
//   7 min_p, 8 top_k (exactly k: ties to the lowest ids), 9 top_p, each on what the one before left, 10 draw
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "backend/sampling.h"
#include "base/result.h"
#include "runtime/request.h"

namespace pinion {

// Refuses what cannot be meant: each error names the field.
Status validate(const SamplingParams& params, int32_t vocab_size);

// Why a row has no token.
Error not_finite_error();
Error none_left_error();

// How often each token occurs, for the penalties.
class TokenHistory {
 public:
  void add_prompt(int32_t token) { counts_.try_emplace(token, 0); }
  void add_output(int32_t token) { ++counts_[token], ++outputs_; }
  // Of all output tokens so far those that were not added yet.
  void add_outputs(std::span<const int32_t> all) {
    while (outputs_ < all.size()) add_output(all[outputs_]);
  }
  const std::unordered_map<int32_t, int32_t>& counts() const { return counts_; }  // 0: in the prompt only

 private:
  std::unordered_map<int32_t, int32_t> counts_;
  size_t outputs_ = 0;
};

// What is worked out once per request.
struct SamplerState {
  uint64_t seed = 0;
  std::vector<int32_t> ending;                    // ids that end the output: masked until min_tokens
  std::vector<std::pair<int32_t, float>> biases;  // logit_bias by id, those of one id in their order
};

struct Sampled {
  int32_t token = 0;
  TokenLogprob logprob;  // when asked for
};

class Sampler {
 public:
  explicit Sampler(int32_t vocab_size);

  // `tokens`: prompt and output so far; `position`: output tokens so far. Errors: internal, when the logits hold a NaN
  // or +inf, or no token is left.
  Result<Sampled> sample(std::span<const float> logits, const SamplingParams& params, const SamplerState& state,
                         const TokenHistory& history, std::span<const int32_t> tokens, int32_t position);

  // The logprob, rank and `top` best of `token` in a raw row. top 0: no list.
  static Result<TokenLogprob> logprob(std::span<const float> logits, int32_t token, int32_t top);

  // Uniform in [0, 1), 53 bits.
  static double uniform(uint64_t seed, uint64_t position);

 private:
  int32_t draw(const SamplingParams& params, uint64_t seed, int32_t position);
  std::vector<float> row_;  // the row being changed
  struct Candidate {
    float logit;
    int32_t id;
  };
  std::vector<Candidate> candidates_;
};

}  // namespace pinion
