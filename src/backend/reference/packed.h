// One weight of a packed matrix (tensor/row_layout.h), read as plainly as can be.
#pragma once

#include "backend/backend.h"

namespace pinion::reference {

// Element [row, col] of any matrix, dense or packed.
float weight_at(const WeightView& w, int64_t row, int64_t col);

// A row of x as an int8 linear takes it (Packing::int8_inputs): each number rounded to a multiple of absmax / 127.
void round_inputs(const float* x, int64_t n, float* out);

}  // namespace pinion::reference
