// How good a model is at a text, and how far from another one: perplexity, KL divergence, agreement of the most likely
// token. Sums are over positions in double, so that the order of texts does not matter.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "runtime/executor.h"

namespace pinion {

struct Evaluation {
  int64_t tokens = 0;     // positions whose distribution was compared: every token of every text
  int64_t predicted = 0;  // tokens that had one before them
  double log_likelihood = 0;
  // Against a reference; without one 0.
  double kl_sum = 0;  // of KL(reference || model)
  int64_t same_top = 0;
  double reference_log_likelihood = 0;

  double perplexity() const;
  double reference_perplexity() const;
  double kl() const { return tokens ? kl_sum / static_cast<double>(tokens) : 0; }
  double top1() const { return tokens ? static_cast<double>(same_top) / static_cast<double>(tokens) : 0; }
};

using Texts = std::span<const std::vector<int32_t>>;
// `reference` may be null. Both must have one vocabulary. Errors name the text that does not fit. `progress` is called
// after each text with how many are done.
Result<Evaluation> evaluate(Executor& model, Executor* reference, Texts texts,
                            const std::function<void(int64_t)>& progress = {});

}  // namespace pinion
