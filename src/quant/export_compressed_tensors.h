// Writes quantised matrices as compressed-tensors checkpoints (vllm-project/compressed-tensors), the form that `pinion
// quantize` produces: other engines read it too, and quantized_checkpoint.h reads it back with equal codes and scales.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "quant/quantized_matrix.h"
#include "tensor/dtype.h"

namespace pinion {

struct ExportedTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;
};

// The tensors of the linear `prefix`. Errors: unsupported for what the format cannot say (input multipliers that were
// not folded into the layer before).
Result<std::vector<ExportedTensor>> export_compressed_tensors(const std::string& prefix, const QuantizedMatrix& m);

// config.json's quantization_config, for linears that all have `scheme` but for those in `ignored`.
Json compressed_tensors_config(const Scheme& scheme, std::span<const std::string> ignored);

}  // namespace pinion
