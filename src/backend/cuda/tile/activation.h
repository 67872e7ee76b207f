// Activations in f32, in forms that keep the digits of small results: 1 + erf x and 1 + tanh x would cancel below 0.
#pragma once

#include "graph/ops/op_base.h"

namespace pinion::cuda {

__device__ inline float activate(Activation act, float x) {
  switch (act) {
    case Activation::silu:
      return x / (1 + __expf(-x));
    case Activation::gelu:
      return 0.5f * x * erfcf(x * -0.70710678f);
    case Activation::gelu_tanh:
      return x / (1 + __expf(-1.5957691f * (x + 0.044715f * x * x * x)));  // (1 + tanh u) / 2 is sigmoid(2 u)
    case Activation::relu:
      return fmaxf(x, 0);
    case Activation::relu2:
      return x > 0 ? x * x : 0;
    case Activation::quick_gelu:
      return x / (1 + __expf(-1.702f * x));
  }
  return x;
}

}  // namespace pinion::cuda
