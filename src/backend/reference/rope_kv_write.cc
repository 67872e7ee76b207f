// Splits qkv, norms and rotates q and k heads, writes k and v to the cache, returns q.
#include <algorithm>

#include "backend/reference/kernel_list.h"

namespace pinion::reference {

void rope_kv_write(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<RopeKvWrite>(*args.op);
  const BatchView& batch = *args.batch;
  const int64_t width = (op.heads + 2 * op.kv_heads) * op.head_dim, q_width = op.heads * op.head_dim;
  const float* qkv = args.in[0].as<float>();
  float* q = args.out[0].as<float>();
  std::vector<float> k(static_cast<size_t>(batch.tokens * op.kv_heads * op.head_dim)), normed(op.head_dim);

  for (int64_t t = 0; t < batch.tokens; ++t) {
    for (int64_t h = 0; h < op.heads + op.kv_heads; ++h) {
      const bool is_q = h < op.heads;
      const float* x = qkv + t * width + h * op.head_dim;
      if (op.qk_norm) {
        norm_row(x, args.weights[is_q ? 0 : 1], op.eps, op.offset, normed.data());
        x = normed.data();
      }
      float* y = is_q ? q + t * q_width + h * op.head_dim : &k[(t * op.kv_heads + h - op.heads) * op.head_dim];
      if (op.rotary_dim > 0) {
        rotate_head(x, batch.rope[op.table], t, op.head_dim, op.rotary_dim, op.interleaved, y);
      } else {
        std::copy(x, x + op.head_dim, y);
      }
    }
  }
  write_kv(batch.kv[op.layer], batch, op.kv_heads, op.head_dim, k.data(), op.kv_heads * op.head_dim,
           qkv + q_width + op.kv_heads * op.head_dim, width);
}

}  // namespace pinion::reference
