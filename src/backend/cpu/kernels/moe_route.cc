// The choice of experts on the CPU: scores, groups and the best of them, row by row in f32, a row's scratch per thread.
#include "backend/cpu/kernels/moe_route.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/cpu_stream.h"

namespace pinion::cpu {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Choice {
  int32_t id;
  float weight;
};

int64_t best(const float* scores, int64_t n) {  // the first of equals
  return std::max_element(scores, scores + n) - scores;
}

void softmax(const float* logits, int64_t n, float* p) {
  const float largest = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += p[i] = std::exp(logits[i] - largest);
  const auto by = static_cast<float>(1 / sum);
  for (int64_t i = 0; i < n; ++i) p[i] *= by;
}

// Leaves the scores of the experts outside the best groups at -infinity. group: scratch of op.groups floats.
void keep_groups(const MoeRoute& op, float* c, float* group) {
  const int64_t size = op.experts / op.groups;
  for (int64_t g = 0; g < op.groups; ++g) {
    float first = kNone, second = kNone;
    for (const float* s = c + g * size; s < c + (g + 1) * size; ++s) {
      if (*s > first) {
        second = first, first = *s;
      } else if (*s > second) {
        second = *s;
      }
    }
    group[g] = op.group_score == GroupScore::largest ? first : first + second;
  }
  constexpr float kKept = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < op.topk_groups; ++i) {
    int64_t top = -1;
    for (int64_t g = 0; g < op.groups; ++g) {
      if (group[g] != kKept && (top < 0 || group[g] > group[top])) top = g;
    }
    group[top] = kKept;
  }
  for (int64_t g = 0; g < op.groups; ++g) {
    if (group[g] != kKept) std::fill_n(c + g * size, size, kNone);
  }
}

// scratch: scores [experts], choice [experts], groups [groups].
void choose(const MoeRoute& op, const float* logits, const FloatArray& bias, const IsaKernels& isa, float* scratch,
            Choice* chosen) {
  float *s = scratch, *c = s + op.experts;
  if (op.score == RouteScore::softmax) {
    softmax(logits, op.experts, s);
  } else {
    for (int64_t e = 0; e < op.experts; ++e) s[e] = 1 / (1 + std::exp(-logits[e]));
  }
  std::copy_n(s, op.experts, c);
  if (bias.data != nullptr) {
    float* b = c + op.experts + op.groups;
    isa.embed(bias, 0, op.experts, 1, b);
    for (int64_t e = 0; e < op.experts; ++e) c[e] += b[e];
  }
  if (op.groups > 1) keep_groups(op, c, c + op.experts);
  double sum = 1e-20;
  for (int64_t j = 0; j < op.top_k; ++j) {
    const int64_t e = best(c, op.experts);
    c[e] = kNone;
    chosen[j] = {static_cast<int32_t>(e), s[e]};
    sum += s[e];
  }
  const auto by = static_cast<float>(op.scale / (op.normalize ? sum : 1));
  for (int64_t j = 0; j < op.top_k; ++j) chosen[j].weight *= by;
}

void sparsemixer(const MoeRoute& op, const float* logits, float* s, Choice* chosen) {
  std::copy_n(logits, op.experts, s);
  for (int64_t j = 0; j < op.top_k; ++j) {
    const int64_t e = best(s, op.experts);
    double sum = 0;
    for (int64_t i = 0; i < op.experts; ++i) {
      const float l = s[i];
      if (l != kNone && (s[e] - l) / std::max(std::abs(l), s[e]) <= 2 * op.jitter) sum += std::exp(l - s[e]);
    }
    chosen[j] = {static_cast<int32_t>(e), static_cast<float>(op.scale / sum)};
    s[e] = kNone;
  }
}

size_t route_scratch(const MoeRoute& op) {  // floats per thread
  return static_cast<size_t>(3 * op.experts + op.groups + 2 * op.top_k + 15) / 16 * 16;
}

}  // namespace

size_t moe_route_workspace(const Call& call, const Tuning&, const DeviceInfo& info) {
  return route_scratch(std::get<MoeRoute>(*call.op)) * sizeof(float) * info.threads;
}

void moe_route(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<MoeRoute>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const float* logits = args.in[0].as<float>();
  auto* ids = args.out[0].as<int32_t>();
  auto* weights = args.out[1].as<float>();
  const FloatArray bias = op.bias ? FloatArray{args.weights[0].data, args.weights[0].dtype} : FloatArray{};
  const int64_t rows = args.in[0].shape[0], parts = std::min<int64_t>(cpu.threads(), 1 + rows / 16);
  check(args.workspace.size() >= route_scratch(op) * sizeof(float) * parts, "moe_route's workspace is too small");
  cpu.run(parts, [&](int64_t part) {
    float* scratch = reinterpret_cast<float*>(args.workspace.data()) + part * route_scratch(op);
    auto* chosen = reinterpret_cast<Choice*>(scratch + 3 * op.experts + op.groups);
    for (int64_t t = rows * part / parts; t < rows * (part + 1) / parts; ++t) {
      const float* row = logits + t * op.experts;
      if (op.score == RouteScore::sparsemixer) {
        sparsemixer(op, row, scratch, chosen);
      } else {
        choose(op, row, bias, cpu.isa(), scratch, chosen);
      }
      std::sort(chosen, chosen + op.top_k, [](const Choice& a, const Choice& b) { return a.id < b.id; });
      for (int64_t j = 0; j < op.top_k; ++j) {
        ids[t * op.top_k + j] = chosen[j].id;
        weights[t * op.top_k + j] = chosen[j].weight;
      }
    }
  });
}

}  // namespace pinion::cpu
