// The readers, one per tool. Each checks its description (the quantization_config object; `where` names its file) and
// refuses by name what it does not implement.
#pragma once

#include <memory>
#include <string>

#include "checkpoint/config_reader.h"
#include "quant/quantized_checkpoint.h"

namespace pinion {

using SourceResult = Result<std::unique_ptr<QuantSource>>;
SourceResult open_awq(const Checkpoint& checkpoint, const ConfigReader& config);
SourceResult open_gptq(const Checkpoint& checkpoint, const ConfigReader& config);
SourceResult open_compressed_tensors(const Checkpoint& checkpoint, const ConfigReader& config);
SourceResult open_hf_fp8(const Checkpoint& checkpoint, const ConfigReader& config);  // "fp8"
SourceResult open_fbgemm_fp8(const Checkpoint& checkpoint, const ConfigReader& config);
SourceResult open_modelopt(const Checkpoint& checkpoint, const ConfigReader& config);  // both forms of its file
SourceResult open_mxfp4(const Checkpoint& checkpoint, const ConfigReader& config);
std::unique_ptr<QuantSource> open_gguf(const Checkpoint& checkpoint);  // of Checkpoint::open_gguf

}  // namespace pinion
