#include "calibrate/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/locate_error.h"
#include "calibrate/sequence_runner.h"

namespace pinion {
namespace {

double log_sum_exp(std::span<const float> x) {
  const float top = *std::ranges::max_element(x);
  double sum = 0;
  for (const float v : x) sum += std::exp(static_cast<double>(v) - top);
  return top + std::log(sum);
}

double perplexity_of(double log_likelihood, int64_t predicted) {
  return predicted ? std::exp(-log_likelihood / static_cast<double>(predicted)) : 0;
}

}  // namespace

double Evaluation::perplexity() const {
  return perplexity_of(log_likelihood, predicted);
}
double Evaluation::reference_perplexity() const {
  return perplexity_of(reference_log_likelihood, predicted);
}

Result<Evaluation> evaluate(Executor& model, Executor* reference, Texts texts,
                            const std::function<void(int64_t)>& progress) {
  const int64_t vocab = model.vocab_size();
  if (reference != nullptr && reference->vocab_size() != vocab) {
    return fail(Errc::invalid_argument,
                fmt::format("the models' vocabularies differ: {} and {}", vocab, reference->vocab_size()), "--against",
                "compare models of one tokenizer");
  }
  SequenceRunner runner(model), other(reference != nullptr ? *reference : model);
  const int32_t piece = std::min(runner.piece(), other.piece());
  Evaluation out;
  for (int64_t text = 0; text < std::ssize(texts); ++text) {
    const std::vector<int32_t>& ids = texts[text];
    for (const SequenceRunner* r : {&runner, &other}) {
      if (const Status fits = r->check(ids); !fits) {
        return locate_error(fits.error(), fmt::format("text {} of the data set", text + 1));
      }
    }
    const int32_t n = static_cast<int32_t>(ids.size());
    for (int32_t at = 0; at < n; at += piece) {
      const int32_t count = std::min(piece, n - at);
      const std::span<const float> logits = runner.run(ids, at, count);
      const std::span<const float> expected = reference != nullptr ? other.run(ids, at, count) : logits;
      for (int32_t i = 0; i < count; ++i) {
        const auto q = logits.subspan(i * vocab, vocab), p = expected.subspan(i * vocab, vocab);
        const double log_q = log_sum_exp(q), log_p = reference != nullptr ? log_sum_exp(p) : log_q;
        ++out.tokens;
        if (at + i + 1 < n) {
          ++out.predicted;
          out.log_likelihood += q[ids[at + i + 1]] - log_q;
          out.reference_log_likelihood += p[ids[at + i + 1]] - log_p;
        }
        if (reference == nullptr) continue;
        for (int64_t v = 0; v < vocab; ++v) {
          const double lp = p[v] - log_p;
          out.kl_sum += std::exp(lp) * (lp - (q[v] - log_q));
        }
        out.same_top += std::ranges::max_element(q) - q.begin() == std::ranges::max_element(p) - p.begin();
      }
    }
    if (progress) progress(text + 1);
  }
  return out;
}

}  // namespace pinion
