// Where a token's K and V lie in the paged cache, and writing them there.
#include "backend/reference/kernel_list.h"
#include "tensor/convert.h"

namespace pinion::reference {

std::byte* kv_block(const KvView& kv, int64_t seq, int64_t position) {
  const int64_t index = position / kv.block_size;
  check(index < kv.max_blocks, "a position lies past its sequence's block table");
  const int32_t block = kv.block_table[seq * kv.max_blocks + index];
  return block < 0 ? nullptr : kv.base + block * kv.block_stride;
}

void write_kv(const KvView& kv, const BatchView& batch, int64_t kv_heads, int64_t head_dim, const float* k,
              int64_t k_stride, const float* v, int64_t v_stride) {
  for (int64_t s = 0; s < batch.seqs; ++s) {
    for (int64_t t = batch.seq_start[s]; t < batch.seq_start[s + 1]; ++t) {
      std::byte* block = kv_block(kv, s, batch.positions[t]);
      check(block != nullptr, "a new token's block is not allocated");
      for (int64_t h = 0; h < kv_heads; ++h) {
        const int64_t at = (h * kv.block_size + batch.positions[t] % kv.block_size) * head_dim;
        for (int64_t i = 0; i < head_dim; ++i) {
          store_f32(block, kv.dtype, at + i, k[t * k_stride + h * head_dim + i]);
          store_f32(block + kv.v_offset, kv.dtype, at + i, v[t * v_stride + h * head_dim + i]);
        }
      }
    }
  }
}

}  // namespace pinion::reference
