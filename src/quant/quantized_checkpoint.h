// Checkpoints that other tools quantised: what a linear's tensors mean is read from quantization_config (or ModelOpt's
// hf_quant_config.json) once, and each linear then becomes a QuantizedMatrix. A source is a file under sources/.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "quant/quantized_matrix.h"

namespace pinion {

// What one tool's checkpoints are read by. Borrows the checkpoint.
class QuantSource {
 public:
  virtual ~QuantSource() = default;
  virtual std::string_view name() const = 0;  // "AutoAWQ"
  // The linear whose tensors are named `prefix` + ".…" ("model.layers.0.mlp.up_proj"); nullopt when they are plain
  // floats, or absent. Which linears are quantised is decided by the tensors that exist. Stacked experts
  // ([experts, rows, cols] on disk) come as one matrix of experts * rows rows.
  virtual Result<std::optional<QuantizedMatrix>> read(std::string_view prefix) const = 0;
};

class QuantizedCheckpoint {
 public:
  // A checkpoint without a quantization_config gives a reader whose read() returns nullopt for everything. Errors:
  // unsupported for an unknown method, version or setting, by name.
  static Result<QuantizedCheckpoint> open(const Checkpoint& checkpoint);

  bool is_quantized() const { return source_ != nullptr; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  std::string_view source() const { return source_ ? source_->name() : "none"; }
  // As QuantSource::read, checked by validate(), and a tensor beside the linear that nobody read is an error: it would
  // change the result.
  Result<std::optional<QuantizedMatrix>> read(std::string_view prefix) const;

 private:
  const Checkpoint* checkpoint_ = nullptr;
  std::unique_ptr<QuantSource> source_;
  std::vector<std::string> names_;  // the checkpoint's, sorted
};

}  // namespace pinion
