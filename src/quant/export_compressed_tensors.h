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

// Modules that are quantised alike.
struct SchemeGroup {
  Scheme scheme;
  std::vector<std::string> modules;
};

// config.json's quantization_config. One group is every linear that is not in `ignored`; of several, each names its
// modules.
Json compressed_tensors_config(std::span<const SchemeGroup> groups, std::span<const std::string> ignored);

}  // namespace pinion
