// Rows of a weight in another float type, converted on the GPU (backend/weight_packing.h).
#pragma once

#include "backend/weight_packing.h"

namespace pinion::cuda {

void convert_rows(const RowConversion& rows, Stream& stream);

}  // namespace pinion::cuda
