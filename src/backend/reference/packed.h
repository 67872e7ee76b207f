// One weight of a packed matrix (tensor/row_layout.h), read as plainly as can be.
#pragma once

#include <vector>

#include "backend/backend.h"

namespace pinion::reference {

// Element [row, col] of any matrix, dense or packed.
float weight_at(const WeightView& w, int64_t row, int64_t col);

// Rows of x [rows, cols] as a linear with this packing takes them; `buffer` holds them where they are rounded.
const float* round_inputs(const Packing& packing, const float* x, int64_t rows, int64_t cols,
                          std::vector<float>& buffer);

}  // namespace pinion::reference
