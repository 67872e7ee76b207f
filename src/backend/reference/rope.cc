// Rotates the first rotary_dim columns of every head.
#include "backend/reference/kernel_list.h"

namespace pinion::reference {

void rotate_head(const float* x, const RopeTable& table, int64_t row, int64_t head_dim, int64_t rotary_dim,
                 bool interleaved, float* y) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const int64_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half;
    const float cos = table.cos[row * half + i], sin = table.sin[row * half + i];
    const float xa = x[a], xb = x[b];
    y[a] = xa * cos - xb * sin;
    y[b] = xb * cos + xa * sin;
  }
  for (int64_t i = rotary_dim; i < head_dim; ++i) y[i] = x[i];
}

void rope(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<Rope>(*args.op);
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t t = 0; t < args.batch->tokens; ++t) {
    for (int64_t h = 0; h < op.heads; ++h) {
      const int64_t at = (t * op.heads + h) * op.head_dim;
      rotate_head(x + at, args.batch->rope[op.table], t, op.head_dim, op.rotary_dim, op.interleaved, y + at);
    }
  }
}

}  // namespace pinion::reference
