// y = x W^T (+ bias), then the epilogue.
#include <cmath>
#include <vector>

#include "backend/reference/kernel_list.h"
#include "backend/reference/packed.h"
#include "tensor/convert.h"

namespace pinion::reference {

void linear(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<Linear>(*args.op);
  const WeightView& w = args.weights[0];
  std::vector<float> rounded;
  const float* x = round_inputs(w.packing, args.in[0].as<float>(), args.in[0].shape[0], op.in, rounded);
  float* y = args.out[0].as<float>();
  const bool gated = op.epilogue == Epilogue::gated_silu;
  const int64_t width = op.output_width();

  const auto dot = [&](int64_t row, int64_t out) {
    double sum = 0;
    for (int64_t k = 0; k < op.in; ++k) {
      sum += static_cast<double>(x[row * op.in + k]) * weight_at(w, out, k);
    }
    return sum + (op.bias ? load_f32(args.weights[1].data, args.weights[1].dtype, out) : 0);
  };
  for (int64_t row = 0; row < args.in[0].shape[0]; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      if (gated) {
        const double gate = dot(row, 2 * i), up = dot(row, 2 * i + 1);
        y[row * width + i] = static_cast<float>(gate / (1 + std::exp(-gate)) * up);
      } else {
        y[row * width + i] = static_cast<float>(dot(row, i));
      }
    }
  }
}

}  // namespace pinion::reference
