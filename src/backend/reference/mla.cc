// Multi-head latent attention in its expanded form, written from the definition: keys and values are made from the
// cached latents, one head at a time.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/reference/kernel_list.h"
#include "tensor/convert.h"

namespace pinion::reference {

void mla_kv_write(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<MlaKvWrite>(*args.op);
  const BatchView& batch = *args.batch;
  const KvView& kv = batch.kv[op.layer];
  const RopeTable& table = batch.rope[op.table];
  const int64_t head = op.nope + op.rope, width = op.rank + op.rope;
  const float *q = args.in[0].as<float>(), *latent = args.in[1].as<float>();
  float* y = args.out[0].as<float>();
  std::vector<float> row(width);
  for (int64_t s = 0; s < batch.seqs; ++s) {
    for (int64_t t = batch.seq_start[s]; t < batch.seq_start[s + 1]; ++t) {
      for (int64_t h = 0; h < op.heads; ++h) {
        const int64_t at = (t * op.heads + h) * head;
        std::copy_n(q + at, op.nope, y + at);
        rotate_head(q + at + op.nope, table, t, op.rope, op.rope, op.interleaved, y + at + op.nope);
      }
      norm_row(latent + t * width, args.weights[0], op.eps, 0, row.data());
      rotate_head(latent + t * width + op.rank, table, t, op.rope, op.rope, op.interleaved, row.data() + op.rank);
      std::byte* block = kv_block(kv, s, batch.positions[t]);
      check(block != nullptr, "a new token's block is not allocated");
      const int64_t at = batch.positions[t] % kv.block_size * width;
      for (int64_t i = 0; i < width; ++i) store_f32(block, kv.dtype, at + i, row[i]);
    }
  }
}

void mla_attention(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<MlaAttention>(*args.op);
  const BatchView& batch = *args.batch;
  const KvView& kv = batch.kv[op.layer];
  const WeightView& w = args.weights[0];
  const int64_t width = op.rank + op.rope, rows = op.nope + op.v;
  const float* q = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  for (int64_t s = 0; s < batch.seqs; ++s) {
    const int64_t keys = batch.context_len[s];
    std::vector<double> latent(keys * width), expanded(keys * rows), p(keys);
    for (int64_t j = 0; j < keys; ++j) {
      const std::byte* block = kv_block(kv, s, j);
      check(block != nullptr, "a visible key's block was freed");
      for (int64_t i = 0; i < width; ++i)
        latent[j * width + i] = load_f32(block, kv.dtype, j % kv.block_size * width + i);
    }
    for (int64_t h = 0; h < op.heads; ++h) {
      for (int64_t j = 0; j < keys; ++j) {
        for (int64_t r = 0; r < rows; ++r) {
          double sum = 0;
          for (int64_t i = 0; i < op.rank; ++i)
            sum += latent[j * width + i] * load_f32(w.data, w.dtype, (h * rows + r) * op.rank + i);
          expanded[j * rows + r] = sum;
        }
      }
      for (int64_t t = batch.seq_start[s]; t < batch.seq_start[s + 1]; ++t) {
        const float* query = q + (t * op.heads + h) * (op.nope + op.rope);
        const int64_t visible = batch.positions[t] + 1;
        double largest = -std::numeric_limits<double>::infinity(), total = 0;
        for (int64_t j = 0; j < visible; ++j) {
          double dot = 0;
          for (int64_t i = 0; i < op.nope; ++i) dot += query[i] * expanded[j * rows + i];
          for (int64_t i = 0; i < op.rope; ++i) dot += query[op.nope + i] * latent[j * width + op.rank + i];
          largest = std::max(largest, p[j] = dot * op.scale);
        }
        for (int64_t j = 0; j < visible; ++j) total += p[j] = std::exp(p[j] - largest);
        for (int64_t i = 0; i < op.v; ++i) {
          double sum = 0;
          for (int64_t j = 0; j < visible; ++j) sum += p[j] * expanded[j * rows + op.nope + i];
          y[(t * op.heads + h) * op.v + i] = static_cast<float>(sum / total);
        }
      }
    }
  }
}

}  // namespace pinion::reference
