// y = a + b.
#include "backend/reference/kernel_list.h"

namespace pinion::reference {

void add(const LaunchArgs& args, Stream&) {
  const float *a = args.in[0].as<float>(), *b = args.in[1].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t i = 0, n = args.out[0].shape.elements(); i < n; ++i) y[i] = a[i] + b[i];
}

}  // namespace pinion::reference
