// LayerNorm over groups of `width` columns.
#include <cmath>

#include "backend/reference/kernel_list.h"
#include "tensor/convert.h"

namespace pinion::reference {

void layer_norm(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<LayerNorm>(*args.op);
  const WeightView& w = args.weights[0];
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t g = 0, n = args.in[0].shape.elements() / op.width; g < n; ++g, x += op.width, y += op.width) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < op.width; ++i) mean += x[i];
    mean /= static_cast<double>(op.width);
    for (int64_t i = 0; i < op.width; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const double scale = 1 / std::sqrt(variance / static_cast<double>(op.width) + op.eps);
    const int64_t first = g % op.groups * op.width;  // of this group's weights
    for (int64_t i = 0; i < op.width; ++i) {
      const double bias = op.bias ? load_f32(args.weights[1].data, args.weights[1].dtype, first + i) : 0;
      y[i] = static_cast<float>((x[i] - mean) * scale * (op.offset + load_f32(w.data, w.dtype, first + i)) + bias);
    }
  }
}

}  // namespace pinion::reference
