#include "backend/cuda/tile/kv_map.h"

#include <array>

#include "backend/cuda/tile/tensor_map.h"

namespace pinion::cuda {
namespace {

constexpr cuuint64_t kAnyBlocks = 1 << 24;  // block tables are trusted; the pool's size is not known here

cuuint64_t size(int64_t n) {
  return static_cast<cuuint64_t>(n);
}

template <size_t N>
CUtensorMap encode(const void* data, DType type, const std::array<cuuint64_t, N>& size,
                   const std::array<cuuint64_t, N - 1>& pitch, const std::array<cuuint32_t, N>& box,
                   CUtensorMapL2promotion promotion) {
  CUtensorMap map{};
  const cuuint32_t step[] = {1, 1, 1, 1};
  const CUresult status = tensor_map_encoder()(
      &map, type == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, N,
      const_cast<void*>(data), size.data(), pitch.data(), box.data(), step, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled takes the operands of an attention kernel");
  return map;
}

}  // namespace

CUtensorMap kv_map(const KvView& kv, int64_t kv_heads, int64_t head_dim, bool values, int box_slots) {
  return encode<3>(kv.base + (values ? kv.v_offset : 0), kv.dtype,
                   {size(head_dim), size(kv_heads * kv.block_size), kAnyBlocks},
                   {size(2 * head_dim), size(kv.block_stride)}, {64, static_cast<cuuint32_t>(box_slots), 1},
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

CUtensorMap kv_pair_map(const KvView& kv, int64_t kv_heads, int64_t head_dim, int box_slots) {
  // A box takes half of a row of 128 columns: promoting its requests to 256 bytes would have L2 ask for all rows twice.
  return encode<4>(kv.base, kv.dtype, {size(head_dim), size(kv_heads * kv.block_size), 2, kAnyBlocks},
                   {size(2 * head_dim), size(kv.v_offset), size(kv.block_stride)},
                   {64, static_cast<cuuint32_t>(box_slots), 2, 1}, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

CUtensorMap query_map(const TensorView& q, int64_t heads, int64_t head_dim) {
  return encode<3>(q.data, q.dtype, {size(head_dim), size(heads), size(q.shape[0])},
                   {size(2 * head_dim), size(2 * heads * head_dim)}, {64, 1, 64}, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

}  // namespace pinion::cuda
