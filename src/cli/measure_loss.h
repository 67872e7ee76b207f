// What quantising costs: a quantised checkpoint against the float model, over texts. The result lies beside the
// checkpoint as quantization_report.json, comes along into engines, and is what `build --max_kl` asks for.
#pragma once

#include <filesystem>
#include <vector>

#include "base/json.h"
#include "cli/model.h"
#include "cli/quantize.h"

namespace pinion::cli {

inline constexpr const char* kLossReport = "quantization_report.json";

struct Loss {
  int64_t tokens = 0;
  double kl = 0, top1 = 0, perplexity = 0, reference_perplexity = 0;
  Json json() const;
};

class LossMeter {
 public:
  // Opens the float model in float32 and reads the texts of --eval_dataset.
  static Result<LossMeter> open(const QuantizeArgs& args);
  // Builds the checkpoint, as it would be served, into a directory of its own that is gone afterwards.
  Result<Loss> measure(const std::filesystem::path& checkpoint);

 private:
  std::string tokenizer_;
  OpenModel reference_;
  std::vector<std::vector<int32_t>> texts_;
};

// Refuses a checkpoint whose report is missing or says more than `max_kl`.
Status check_loss(const std::filesystem::path& checkpoint, double max_kl);

}  // namespace pinion::cli
