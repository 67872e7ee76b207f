// What `pinion quantize` does; `pinion convert --use_weight_only` and `--use_fp8` ask for the same.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace pinion::cli {

struct QuantizeArgs {
  std::string model_dir, output_dir, qformat, calib_dataset, calib_state, eval_dataset, tokenizer;
  std::string weight_scales = "channel";  // fp8: tensor, channel, block
  std::string input_dtype = "auto";       // w4a8_awq: fp8, int8
  std::string input_range = "auto";       // of static inputs: auto, max, percentile, mse
  std::string kv_cache_dtype = "auto";    // fp8: calibrated scales for it; int8 and floats need none
  std::vector<std::string> exclude_modules;
  int32_t group_size = -1;  // -1: the format's own
  int32_t calib_size = 512, calib_max_seq_length = 512, eval_size = 64;
  double effective_bits = 0, max_kl = 0;  // 0: every linear in the format
  double smooth_alpha = 0.5;              // int8_sq
  bool symmetric = false, static_inputs = false, lm_head = false, embedding = false, json = false;
};

Status quantize(const QuantizeArgs& args);

}  // namespace pinion::cli
