// Where a token's K and V lie in the paged cache, and writing them there.
#include <cstring>

#include "backend/reference/kernel_list.h"
#include "quant/formats/kv_cache/kv_cache.h"
#include "tensor/convert.h"

namespace pinion::reference {

std::byte* kv_block(const KvView& kv, int64_t seq, int64_t position) {
  const int64_t index = position / kv.block_size;
  check(index < kv.max_blocks, "a position lies past its sequence's block table");
  const int32_t block = kv.block_table[seq * kv.max_blocks + index];
  return block < 0 ? nullptr : kv.base + block * kv.block_stride;
}

namespace {

// One head's key or value into slot `slot` of a plane: a block's K, or its V.
void store_head(const KvView& kv, std::byte* plane, int64_t kv_heads, int64_t d, int64_t h, int64_t slot, float scale,
                const float* x) {
  const int64_t row = h * kv.block_size + slot;
  if (kv.dtype == DType::f8_e4m3) {
    kv_to_e4m3({x, static_cast<size_t>(d)}, scale,
               {reinterpret_cast<uint8_t*>(plane) + row * d, static_cast<size_t>(d)});
  } else if (kv.dtype == DType::i8) {
    const float own =
        kv_to_int8({x, static_cast<size_t>(d)}, {reinterpret_cast<int8_t*>(plane) + row * d, static_cast<size_t>(d)});
    std::memcpy(plane + kv_heads * kv.block_size * d + row * sizeof(float), &own, sizeof own);
  } else {
    for (int64_t i = 0; i < d; ++i) store_f32(plane, kv.dtype, row * d + i, x[i]);
  }
}

}  // namespace

void load_head(const KvView& kv, const std::byte* plane, int64_t kv_heads, int64_t d, int64_t h, int64_t slot,
               float scale, float* out) {
  const int64_t row = h * kv.block_size + slot;
  const std::span<float> head(out, static_cast<size_t>(d));
  if (kv.dtype == DType::f8_e4m3) {
    kv_from_e4m3({reinterpret_cast<const uint8_t*>(plane) + row * d, head.size()}, scale, head);
  } else if (kv.dtype == DType::i8) {
    float own;
    std::memcpy(&own, plane + kv_heads * kv.block_size * d + row * sizeof(float), sizeof own);
    kv_from_int8({reinterpret_cast<const int8_t*>(plane) + row * d, head.size()}, own, head);
  } else {
    for (int64_t i = 0; i < d; ++i) out[i] = load_f32(plane, kv.dtype, row * d + i);
  }
}

void write_kv(const KvView& kv, const BatchView& batch, int64_t kv_heads, int64_t head_dim, const float* k,
              int64_t k_stride, const float* v, int64_t v_stride) {
  for (int64_t s = 0; s < batch.seqs; ++s) {
    for (int64_t t = batch.seq_start[s]; t < batch.seq_start[s + 1]; ++t) {
      std::byte* block = kv_block(kv, s, batch.positions[t]);
      check(block != nullptr, "a new token's block is not allocated");
      for (int64_t h = 0; h < kv_heads; ++h) {
        const int64_t slot = batch.positions[t] % kv.block_size;
        store_head(kv, block, kv_heads, head_dim, h, slot, kv.k_scale, k + t * k_stride + h * head_dim);
        store_head(kv, block + kv.v_offset, kv_heads, head_dim, h, slot, kv.v_scale, v + t * v_stride + h * head_dim);
      }
    }
  }
}

}  // namespace pinion::reference
