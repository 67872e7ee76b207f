// y = cap * tanh(scale * x / cap), or scale * x.
#include <cmath>

#include "backend/reference/kernel_list.h"

namespace pinion::reference {

void soft_cap(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<SoftCap>(*args.op);
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t i = 0, n = args.out[0].shape.elements(); i < n; ++i) {
    const double v = static_cast<double>(x[i]) * op.scale;
    y[i] = static_cast<float>(op.cap > 0 ? op.cap * std::tanh(v / op.cap) : v);
  }
}

}  // namespace pinion::reference
