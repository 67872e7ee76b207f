// y[i] = x[output_rows[i]].
#include <cstring>

#include "backend/reference/kernel_list.h"

namespace pinion::reference {

void select_rows(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<SelectRows>(*args.op);
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t i = 0; i < args.batch->outputs; ++i) {
    std::memcpy(y + i * op.width, x + args.batch->output_rows[i] * op.width, op.width * sizeof(float));
  }
}

}  // namespace pinion::reference
