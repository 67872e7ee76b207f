// Descriptors of a layer's pages for tensor copies (CUDA driver API, cuTensorMapEncodeTiled): [block][KV head and
// slot][column], boxes of 64 columns by some slots of one head, swizzled in 128-byte rows as ldmatrix and wgmma want
// them. Columns past the head size arrive as zeros.
#pragma once

#include <cuda.h>

#include "backend/backend.h"

namespace pinion::cuda {

// `values`: of V instead of K. `box_slots` divides the block size. Errors: CudaError when the driver has no tensor
// copies.
CUtensorMap kv_map(const KvView& kv, int64_t kv_heads, int64_t head_dim, bool values, int box_slots);

// The same for boxes that bring keys and, behind them, values: [block][K, V][KV head and slot][column].
CUtensorMap kv_pair_map(const KvView& kv, int64_t kv_heads, int64_t head_dim, int box_slots);

// Descriptors of query rows: [token][head][column], boxes of 64 columns by 64 tokens of one head.
CUtensorMap query_map(const TensorView& q, int64_t heads, int64_t head_dim);

}  // namespace pinion::cuda
