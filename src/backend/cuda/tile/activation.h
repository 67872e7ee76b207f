// Activations in f32, in the forms that the reference uses.
#pragma once

#include "graph/ops/op_base.h"

namespace pinion::cuda {

__device__ inline float activate(Activation act, float x) {
  switch (act) {
    case Activation::silu:
      return x / (1 + __expf(-x));
    case Activation::gelu:
      return 0.5f * x * (1 + erff(x * 0.70710678f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
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
