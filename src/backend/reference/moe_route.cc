// Scores, the choice of groups and experts, and the weights of the chosen, row by row.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/reference/kernel_list.h"
#include "tensor/convert.h"

namespace pinion::reference {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

struct Choice {
  int32_t id;
  double weight;
};

std::vector<double> softmax(const float* logits, int64_t n) {
  std::vector<double> p(logits, logits + n);
  const double largest = *std::ranges::max_element(p);
  double sum = 0;
  for (double& v : p) sum += v = std::exp(v - largest);
  for (double& v : p) v /= sum;
  return p;
}

int32_t best(const std::vector<double>& scores) {  // the first of equals
  return static_cast<int32_t>(std::ranges::max_element(scores) - scores.begin());
}

double group_score(const MoeRoute& op, const double* first, int64_t n) {
  std::vector<double> c(first, first + n);
  std::ranges::sort(c, std::greater<>());
  return op.group_score == GroupScore::largest ? c[0] : c[0] + c[1];
}

std::vector<Choice> choose(const MoeRoute& op, const float* logits, const WeightView* bias) {
  std::vector<double> s(op.experts), c;
  if (op.score == RouteScore::softmax) {
    s = softmax(logits, op.experts);
  } else {
    for (int64_t e = 0; e < op.experts; ++e) s[e] = 1 / (1 + std::exp(-static_cast<double>(logits[e])));
  }
  c = s;
  if (bias != nullptr) {
    for (int64_t e = 0; e < op.experts; ++e) c[e] += load_f32(bias->data, bias->dtype, e);
  }
  if (op.groups > 1) {
    const int64_t size = op.experts / op.groups;
    std::vector<double> scores(op.groups);
    for (int64_t g = 0; g < op.groups; ++g) scores[g] = group_score(op, c.data() + g * size, size);
    std::vector<double> kept(op.experts, kNone);
    for (int64_t i = 0; i < op.topk_groups; ++i) {
      const int64_t g = best(scores);
      scores[g] = kNone;
      std::copy_n(c.begin() + g * size, size, kept.begin() + g * size);
    }
    c = kept;
  }
  std::vector<Choice> chosen;
  double sum = 1e-20;
  for (int64_t i = 0; i < op.top_k; ++i) {
    const int32_t e = best(c);
    c[e] = kNone;
    chosen.push_back({e, s[e]});
    sum += s[e];
  }
  for (Choice& x : chosen) x.weight *= op.scale / (op.normalize ? sum : 1);
  return chosen;
}

std::vector<Choice> sparsemixer(const MoeRoute& op, const float* logits) {
  std::vector<double> s(logits, logits + op.experts);
  std::vector<Choice> chosen;
  for (int64_t i = 0; i < op.top_k; ++i) {
    const int32_t e = best(s);
    double sum = 0;
    for (double l : s) {  // one that is gone counts as -inf
      if (l != kNone && (s[e] - l) / std::max(std::abs(l), s[e]) <= 2.0 * op.jitter) sum += std::exp(l - s[e]);
    }
    chosen.push_back({e, op.scale / sum});
    s[e] = kNone;
  }
  return chosen;
}

}  // namespace

void moe_route(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<MoeRoute>(*args.op);
  const float* logits = args.in[0].as<float>();
  auto* ids = args.out[0].as<int32_t>();
  auto* weights = args.out[1].as<float>();
  for (int64_t t = 0; t < args.in[0].shape[0]; ++t) {
    const float* row = logits + t * op.experts;
    auto chosen = op.score == RouteScore::sparsemixer ? sparsemixer(op, row)
                                                      : choose(op, row, op.bias ? &args.weights[0] : nullptr);
    std::ranges::sort(chosen, {}, &Choice::id);
    for (int64_t j = 0; j < op.top_k; ++j) {
      ids[t * op.top_k + j] = chosen[j].id;
      weights[t * op.top_k + j] = static_cast<float>(chosen[j].weight);
    }
  }
}

}  // namespace pinion::reference
