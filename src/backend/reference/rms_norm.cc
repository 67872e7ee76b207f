// RmsNorm over groups of `width` columns, and its fusion with the residual addition before it.
#include <cmath>

#include "backend/reference/kernel_list.h"
#include "tensor/convert.h"

namespace pinion::reference {

void norm_row(const float* x, const WeightView& weight, float eps, float offset, float* y) {
  const int64_t width = weight.cols;
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + eps);
  for (int64_t i = 0; i < width; ++i) {
    y[i] = static_cast<float>(x[i] * scale * (offset + load_f32(weight.data, weight.dtype, i)));
  }
}

void rms_norm(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<RmsNorm>(*args.op);
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t i = 0, n = args.in[0].shape.elements(); i < n; i += op.width) {
    norm_row(x + i, args.weights[0], op.eps, op.offset, y + i);
  }
}

void add_rms_norm(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<AddRmsNorm>(*args.op);
  const float *x = args.in[0].as<float>(), *residual = args.in[1].as<float>();
  float *sum = args.out[0].as<float>(), *y = args.out[1].as<float>();
  const int64_t n = args.in[0].shape.elements();
  for (int64_t i = 0; i < n; ++i) sum[i] = x[i] + op.scale * residual[i];
  for (int64_t i = 0; i < n; i += op.width) norm_row(sum + i, args.weights[0], op.eps, op.offset, y + i);
}

}  // namespace pinion::reference
