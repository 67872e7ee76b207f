// y = a + scale * b.
#include "backend/reference/kernel_list.h"

namespace pinion::reference {

void add(const LaunchArgs& args, Stream&) {
  const float scale = std::get<Add>(*args.op).scale;
  const float *a = args.in[0].as<float>(), *b = args.in[1].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t i = 0, n = args.out[0].shape.elements(); i < n; ++i) y[i] = a[i] + scale * b[i];
}

}  // namespace pinion::reference
