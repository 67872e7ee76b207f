// The tensors that most tools share: 8-bit codes as they are ("weight" [N, K] with scales), and two fp4 codes a byte.
#pragma once

#include "quant/quantized_matrix.h"
#include "quant/sources/tensors.h"

namespace pinion {

// `weight` is F8_E4M3 or I8 [N, K]; `scale` has one element, N (per channel), or one per block of block_rows x
// block_cols, in any rank. 0: tell per tensor from per channel by the number of elements.
Result<QuantizedMatrix> read_8bit(const QuantTensors& tensors, const std::string& weight, const std::string& scale,
                                  int32_t block_rows = 0, int32_t block_cols = 0);

// `packed` U8 [N, K/2], the low nibble first; `scale` [N, K/group] of any float type.
Result<QuantizedMatrix> read_fp4(const QuantTensors& tensors, const std::string& packed, const std::string& scale,
                                 int32_t group);

}  // namespace pinion
