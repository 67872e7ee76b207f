// From a float checkpoint to a quantised one: which linears, their encoding, and what is folded into the layers before
// them. The result is a compressed-tensors checkpoint.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "calibrate/input_range.h"
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
  RangeMethod input_range = RangeMethod::automatic;  // of static inputs
  bool head = false, embedding = false;              // in int8, a scale per row; of tied ones either means both
  std::set<std::string> in_8bit;                     // modules that get int8, a scale per row, instead of the format
  std::map<std::string, float> kv_scales;            // tensors to add: InputCollector::kv_scales
  bool measure_8bit = false;                         // fill LinearReport::error_8bit
  std::function<void(int64_t done, int64_t total)> progress;  // linears
};

// How far a linear's outputs over the calibration sample move, as a part of their energy; without a sample, its
// weights.
struct LinearReport {
  std::string module, scheme;
  int64_t elements = 0;
  uint64_t bytes = 0, bytes_8bit = 0;
  double error = 0, error_8bit = 0;
};

struct QuantizedModel {
  Json config;                         // config.json with its quantization_config
  std::vector<ExportedTensor> made;    // what was encoded or folded
  std::vector<TensorToWrite> tensors;  // everything, borrowing from `made` and the checkpoint
  std::vector<LinearReport> report;    // in the graph's order
  int64_t linears = 0;
  uint64_t bytes_before = 0, bytes_after = 0;  // of the linears
};

// `inputs`: null for formats that need none. The result borrows from the checkpoint, and holds the quantised weights in
// memory; with calibration the float weights too. Errors name the module.
Result<QuantizedModel> quantize_model(const Checkpoint& checkpoint, const Model& model,
                                      const QuantizeModelOptions& options, const InputCollector* inputs);

}  // namespace pinion
