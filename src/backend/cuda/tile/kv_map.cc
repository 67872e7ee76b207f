#include "backend/cuda/tile/kv_map.h"

#include <cuda_runtime.h>

#include <array>

#include "backend/cuda/cuda_error.h"

namespace pinion::cuda {
namespace {

// The driver's function by way of the run time: nothing links to the driver's library, which a build machine lacks.
decltype(&cuTensorMapEncodeTiled) encoder() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
               "cudaGetDriverEntryPointByVersion(cuTensorMapEncodeTiled)");
    if (result != cudaDriverEntryPointSuccess) cuda_check(cudaErrorNotSupported, "cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return function;
}

constexpr cuuint64_t kAnyBlocks = 1 << 24;  // block tables are trusted; the pool's size is not known here

cuuint64_t size(int64_t n) {
  return static_cast<cuuint64_t>(n);
}

template <size_t N>
CUtensorMap encode(const void* data, DType type, const std::array<cuuint64_t, N>& size,
                   const std::array<cuuint64_t, N - 1>& pitch, const std::array<cuuint32_t, N>& box) {
  CUtensorMap map{};
  const cuuint32_t step[] = {1, 1, 1, 1};
  const CUresult status =
      encoder()(&map, type == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, N,
                const_cast<void*>(data), size.data(), pitch.data(), box.data(), step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled takes the operands of an attention kernel");
  return map;
}

}  // namespace

CUtensorMap kv_map(const KvView& kv, int64_t kv_heads, int64_t head_dim, bool values, int box_slots) {
  return encode<3>(kv.base + (values ? kv.v_offset : 0), kv.dtype,
                   {size(head_dim), size(kv_heads * kv.block_size), kAnyBlocks},
                   {size(2 * head_dim), size(kv.block_stride)}, {64, static_cast<cuuint32_t>(box_slots), 1});
}

CUtensorMap kv_pair_map(const KvView& kv, int64_t kv_heads, int64_t head_dim, int box_slots) {
  return encode<4>(kv.base, kv.dtype, {size(head_dim), size(kv_heads * kv.block_size), 2, kAnyBlocks},
                   {size(2 * head_dim), size(kv.v_offset), size(kv.block_stride)},
                   {64, static_cast<cuuint32_t>(box_slots), 2, 1});
}

CUtensorMap query_map(const TensorView& q, int64_t heads, int64_t head_dim) {
  return encode<3>(q.data, q.dtype, {size(head_dim), size(heads), size(q.shape[0])},
                   {size(2 * head_dim), size(2 * heads * head_dim)}, {64, 1, 64});
}

}  // namespace pinion::cuda
