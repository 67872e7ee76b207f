// An optional ability of a device with memory of its own: converting a weight's rows while an engine is built. Asked
// for by dynamic_cast of the Device; without it the host's threads convert (compiler/dense_weight.h). Both give the
// same bytes.
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace pinion {

// Rows of one tensor, as the checkpoint has them, to where they lie among the rows of a packed weight. Both types are
// floats (tensor/convert.h says how they round); pointers are the device's.
struct RowConversion {
  const std::byte* from = nullptr;  // [rows, cols] of from_type; aligned to 16 bytes
  DType from_type = DType::f32;
  // Row i goes to row i * step of cols elements of to_type. Aligned to 16 bytes where such a row is a multiple of them,
  // to to_type elsewhere.
  std::byte* to = nullptr;
  DType to_type = DType::bf16;
  int64_t rows = 0, cols = 0, step = 1;
  uint32_t* overflow = nullptr;  // becomes 1 where a value is infinite as float16; else it is left alone
};

class WeightPackingDevice {
 public:
  virtual ~WeightPackingDevice() = default;
  // In stream order.
  virtual void convert_rows(const RowConversion& rows, Stream& stream) = 0;
};

}  // namespace pinion
