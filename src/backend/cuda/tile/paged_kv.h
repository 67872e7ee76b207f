// The paged KV cache inside kernels: where a token's K and V of a layer lie (backend.h, KvView).
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/tile/values.h"

namespace pinion::cuda {

struct PagedKv {
  std::byte* base = nullptr;
  int64_t block_stride = 0, v_offset = 0;  // bytes
  const int32_t* block_table = nullptr;    // [seqs, max_blocks]
  int32_t max_blocks = 0, block_size = 64;
  DType dtype = DType::f32;

  // The block that holds `position` of sequence `seq`; -1: none, of padding or freed behind the window.
  __device__ int32_t block_of(int32_t seq, int32_t position) const {
    const int32_t index = position / block_size;
    return index < max_blocks ? block_table[int64_t{seq} * max_blocks + index] : -1;
  }
  __device__ Values k(int32_t block) const { return {base + block * block_stride, dtype}; }
  __device__ Values v(int32_t block) const { return {base + block * block_stride + v_offset, dtype}; }
  // The element of a block's K (or V) at which a head's row for `position` starts.
  __device__ int64_t element(int64_t head, int32_t position, int64_t head_dim) const {
    return (head * block_size + position % block_size) * head_dim;
  }
};

inline PagedKv paged_kv(const KvView& kv) {
  return {kv.base, kv.block_stride, kv.v_offset, kv.block_table, kv.max_blocks, kv.block_size, kv.dtype};
}

}  // namespace pinion::cuda
