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

CUtensorMap encode(const void* data, DType type, std::array<cuuint64_t, 3> size, std::array<cuuint64_t, 2> pitch,
                   std::array<cuuint32_t, 3> box) {
  CUtensorMap map{};
  const cuuint32_t step[3] = {1, 1, 1};
  const CUresult status =
      encoder()(&map, type == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
                const_cast<void*>(data), size.data(), pitch.data(), box.data(), step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled takes the operands of an attention kernel");
  return map;
}

}  // namespace

CUtensorMap kv_map(const KvView& kv, int64_t kv_heads, int64_t head_dim, bool values, int box_slots) {
  constexpr cuuint64_t kAnyBlocks = 1 << 24;  // block tables are trusted; the pool's size is not known here
  const auto size = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  return encode(kv.base + (values ? kv.v_offset : 0), kv.dtype,
                {size(head_dim), size(kv_heads * kv.block_size), kAnyBlocks},
                {size(2 * head_dim), size(kv.block_stride)}, {64, static_cast<cuuint32_t>(box_slots), 1});
}

CUtensorMap query_map(const TensorView& q, int64_t heads, int64_t head_dim) {
  const auto size = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  return encode(q.data, q.dtype, {size(head_dim), size(heads), size(q.shape[0])},
                {size(2 * head_dim), size(2 * heads * head_dim)}, {64, 1, 64});
}

}  // namespace pinion::cuda
