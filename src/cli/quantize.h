// What `pinion quantize` does; `pinion convert --use_weight_only` asks for the same.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace pinion::cli {

struct QuantizeArgs {
  std::string model_dir, output_dir, qformat, calib_dataset, tokenizer;
  std::vector<std::string> exclude_modules;
  int32_t group_size = -1;  // -1: the format's own
  int32_t calib_size = 512, calib_max_seq_length = 512;
  bool symmetric = false, static_inputs = false, json = false;
};

Status quantize(const QuantizeArgs& args);

}  // namespace pinion::cli
