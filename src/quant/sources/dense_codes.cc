#include "quant/sources/dense_codes.h"

#include <fmt/format.h>

namespace pinion {

Result<QuantizedMatrix> read_8bit(const QuantTensors& tensors, const std::string& weight, const std::string& scale,
                                  int32_t block_rows, int32_t block_cols) {
  const bool fp8 = tensors.has_dtype(weight, DType::f8_e4m3);
  PINION_TRY(const TensorRef codes, tensors.get(weight, fp8 ? DType::f8_e4m3 : DType::i8, 2));
  QuantizedMatrix m{.scheme = {.code = fp8 ? CodeType::e4m3 : CodeType::integer, .bits = 8},
                    .rows = codes.shape[0],
                    .cols = codes.shape[1]};
  PINION_TRY(m.codes, tensors.bytes(weight, codes.dtype, codes.shape));
  if (block_cols > 0) {
    m.scheme.block_rows = block_rows;
    m.scheme.block_cols = block_cols;
  } else {
    auto one = tensors.floats(scale, 1);
    m.scheme.block_rows = one.ok() ? 0 : 1;
    m.scheme.block_cols = 0;
  }
  PINION_TRY(m.scales, tensors.floats(scale, m.scale_rows() * m.scale_cols()));
  return m;
}

Result<QuantizedMatrix> read_fp4(const QuantTensors& tensors, const std::string& packed, const std::string& scale,
                                 int32_t group) {
  PINION_TRY(const TensorRef codes, tensors.get(packed, DType::u8, 2));
  QuantizedMatrix m{.scheme = {.code = CodeType::e2m1, .bits = 4, .block_cols = group},
                    .rows = codes.shape[0],
                    .cols = codes.shape[1] * 2};
  if (m.cols % group != 0) {
    return tensors.wrong(packed, fmt::format("has rows of {}, which groups of {} do not divide", m.cols, group));
  }
  m.codes.reserve(m.rows * m.cols);
  for (const std::byte b : codes.data) {
    m.codes.push_back(static_cast<uint8_t>(b) & 15);
    m.codes.push_back(static_cast<uint8_t>(b) >> 4);
  }
  PINION_TRY(m.scales, tensors.floats(scale, m.rows * m.scale_cols()));
  return m;
}

}  // namespace pinion
