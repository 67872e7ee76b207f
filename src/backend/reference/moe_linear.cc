// The experts' linears, slot by slot, and the weighted sum of what they return.
#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/reference/kernel_list.h"
#include "backend/reference/packed.h"
#include "tensor/convert.h"

namespace pinion::reference {

void moe_linear(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<MoeLinear>(*args.op);
  const WeightView& w = args.weights[0];
  const int64_t parts = op.per_slot ? op.top_k : 1;  // rows of `in` columns in a row of x
  std::vector<float> rounded;
  const float* x = round_inputs(w.packing, args.in[0].as<float>(), args.in[0].shape[0] * parts, op.in, rounded);
  const auto* ids = args.in[1].as<int32_t>();
  float* y = args.out[0].as<float>();
  const int64_t width = op.slot_width();
  const auto dot = [&](const float* input, int64_t row) {
    double sum = op.bias ? load_f32(args.weights[1].data, args.weights[1].dtype, row) : 0;
    for (int64_t k = 0; k < op.in; ++k) sum += static_cast<double>(input[k]) * weight_at(w, row, k);
    return sum;
  };
  for (int64_t i = 0; i < args.in[0].shape[0] * op.top_k; ++i) {
    const float* input = x + (op.per_slot ? i : i / op.top_k) * op.in;
    float* to = y + i * width;
    const int64_t expert = ids[i] - op.first_expert;
    if (expert < 0 || expert >= op.experts) {
      std::fill_n(to, width, 0.0f);
      continue;
    }
    for (int64_t o = 0; o < width; ++o) {
      if (op.epilogue == ExpertEpilogue::none) {
        to[o] = static_cast<float>(dot(input, expert * op.out + o));
        continue;
      }
      const double gate = dot(input, expert * op.out + 2 * o), up = dot(input, expert * op.out + 2 * o + 1);
      if (op.epilogue == ExpertEpilogue::gated) {
        to[o] = static_cast<float>(activate(op.act, gate) * up);
      } else {
        const double limit = op.limit, g = std::min(gate, limit);
        to[o] = static_cast<float>((std::clamp(up, -limit, limit) + 1) * g / (1 + std::exp(-1.702 * g)));
      }
    }
  }
}

void moe_combine(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<MoeCombine>(*args.op);
  const float *h = args.in[0].as<float>(), *weights = args.in[1].as<float>();
  const float* shared = args.in.size() > 2 ? args.in[2].as<float>() : nullptr;
  const float* gate = args.in.size() > 3 ? args.in[3].as<float>() : nullptr;
  float* y = args.out[0].as<float>();
  for (int64_t t = 0; t < args.out[0].shape[0]; ++t) {
    for (int64_t i = 0; i < op.width; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < op.top_k; ++j) {
        sum += static_cast<double>(weights[t * op.top_k + j]) * h[(t * op.top_k + j) * op.width + i];
      }
      if (shared != nullptr)
        sum += shared[t * op.width + i] * (gate != nullptr ? 1 / (1 + std::exp(-double{gate[t]})) : 1);
      y[t * op.width + i] = static_cast<float>(sum);
    }
  }
}

}  // namespace pinion::reference
