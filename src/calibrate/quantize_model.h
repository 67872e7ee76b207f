// From a float checkpoint to a quantised one: which linears, their encoding, and what is folded into the layers before
// them. The result is a compressed-tensors checkpoint.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "calibrate/input_statistics.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "models/families.h"
#include "quant/export_compressed_tensors.h"
#include "quant/quant_format.h"

namespace pinion {

struct QuantizeModelOptions {
  const QuantFormat* format = nullptr;
  EncodeOptions encode;
  std::vector<std::string> exclude_modules;  // wildcards over module names, beside heads, routers and embeddings
  std::function<void(int64_t done, int64_t total)> progress;  // linears
};

struct QuantizedModel {
  Json config;                         // config.json with its quantization_config
  std::vector<ExportedTensor> made;    // what was encoded or folded
  std::vector<TensorToWrite> tensors;  // everything, borrowing from `made` and the checkpoint
  int64_t linears = 0;
  uint64_t bytes_before = 0, bytes_after = 0;  // of the linears
};

// `inputs`: null for formats that need none. The result borrows from the checkpoint, and holds the quantised weights in
// memory; with calibration the float weights too. Errors name the module.
Result<QuantizedModel> quantize_model(const Checkpoint& checkpoint, const Model& model,
                                      const QuantizeModelOptions& options, const InputCollector* inputs);

}  // namespace pinion
