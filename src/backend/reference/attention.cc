// Attention over the paged cache: for each query row and head, scores of every visible key, softmax, weighted sum.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/reference/kernel_list.h"
#include "tensor/convert.h"

namespace pinion::reference {

void attention(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<Attention>(*args.op);
  const BatchView& batch = *args.batch;
  const KvView& kv = batch.kv[op.layer];
  const int64_t d = op.head_dim, kv_width = op.kv_heads * d, group = op.heads / op.kv_heads;
  if (args.in.size() == 3) {
    write_kv(kv, batch, op.kv_heads, d, args.in[1].as<float>(), kv_width, args.in[2].as<float>(), kv_width);
  }
  const float* q = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  std::vector<double> scores, sum(d);
  std::vector<float> head(d);

  for (int64_t s = 0; s < batch.seqs; ++s) {
    for (int64_t t = batch.seq_start[s]; t < batch.seq_start[s + 1]; ++t) {
      const int64_t position = batch.positions[t];
      const int64_t first = op.window > 0 ? std::max<int64_t>(0, position - op.window + 1) : 0;
      for (int64_t h = 0; h < op.heads; ++h) {
        const float* query = q + (t * op.heads + h) * d;
        const auto load = [&](const std::byte* plane, int64_t key, float scale) {
          load_head(kv, plane, op.kv_heads, d, h / group, key % kv.block_size, scale, head.data());
        };
        scores.assign(position + 1 - first, 0);
        double largest = -std::numeric_limits<double>::infinity();
        for (int64_t key = first; key <= position; ++key) {
          const std::byte* block = kv_block(kv, s, key);
          check(block != nullptr, "a visible key's block was freed");
          load(block, key, kv.k_scale);
          double dot = 0;
          for (int64_t i = 0; i < d; ++i) dot += static_cast<double>(query[i]) * head[i];
          dot *= op.scale;
          if (op.softcap > 0) dot = op.softcap * std::tanh(dot / op.softcap);
          if (op.alibi > 0) dot += static_cast<double>(alibi_slope(op, h)) * static_cast<double>(key - position);
          scores[key - first] = dot;
          largest = std::max(largest, scores[key - first]);
        }
        double total = 0;
        if (op.sinks) {
          const double sink = load_f32(args.weights[0].data, args.weights[0].dtype, h);
          largest = std::max(largest, sink);
          total = std::exp(sink - largest);
        }
        std::fill(sum.begin(), sum.end(), 0);
        for (int64_t key = first; key <= position; ++key) {
          const double p = std::exp(scores[key - first] - largest);
          load(kv_block(kv, s, key) + kv.v_offset, key, kv.v_scale);
          total += p;
          for (int64_t i = 0; i < d; ++i) sum[i] += p * head[i];
        }
        for (int64_t i = 0; i < d; ++i) y[(t * op.heads + h) * d + i] = static_cast<float>(sum[i] / total);
      }
    }
  }
}

}  // namespace pinion::reference
