// Descriptors of two-dimensional tensors for tensor copies (CUDA driver API, cuTensorMapEncodeTiled), made on the host
// in well under a microsecond and passed in a kernel's parameters.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace pinion::cuda {

// The driver's function by way of the run time: nothing links to the driver's library, which a build machine lacks.
// Errors: CudaError, when the driver has no tensor copies.
decltype(&cuTensorMapEncodeTiled) tensor_map_encoder();

struct Matrix {  // dense, row-major, of a two-byte type; 16-byte aligned, columns a multiple of 8
  const void* data = nullptr;
  DType type = DType::bf16;
  int64_t rows = 0, columns = 0;
};

// For boxes of box_rows x box_columns (at most 256 rows of 64 columns = 128 bytes), swizzled in 128-byte rows as wgmma
// reads them. Errors: CudaError, when the driver has no tensor copies.
CUtensorMap tensor_map(const Matrix& m, int box_rows, int box_columns);

}  // namespace pinion::cuda
