// The activations, and the two ops that apply one: y = act(x), and y = act(gate) * up.
#include <cmath>

#include "backend/reference/kernel_list.h"

namespace pinion::reference {

double activate(Activation act, double x) {
  switch (act) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x * 0.70710678118654752));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::relu2:
      return x > 0 ? x * x : 0;
    case Activation::quick_gelu:
      return x / (1 + std::exp(-1.702 * x));
  }
  return x;
}

void act(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<Act>(*args.op);
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t i = 0, n = args.out[0].shape.elements(); i < n; ++i) y[i] = static_cast<float>(activate(op.act, x[i]));
}

void gated_act(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<GatedAct>(*args.op);
  const float *gate = args.in[0].as<float>(), *up = args.in[1].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t i = 0, n = args.out[0].shape.elements(); i < n; ++i) {
    y[i] = static_cast<float>(activate(op.act, gate[i]) * up[i]);
  }
}

}  // namespace pinion::reference
