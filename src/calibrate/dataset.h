// A data set for calibration and evaluation: JSONL, a text per line as {"text": …}, {"prompt": …} or {"messages": […]}
// (rendered by the model's chat template), or tokens as {"ids": […]}.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/result.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace pinion {

struct DatasetOptions {
  int64_t max_lines = 0;   // 0: all
  int64_t max_tokens = 0;  // of a line, the rest is cut; 0: whole
};

// The lines as token ids, empty ones left out. A null tokenizer or template is an error only where a line needs it.
// Errors name the line.
Result<std::vector<std::vector<int32_t>>> read_dataset(const std::filesystem::path& file, const Tokenizer* tokenizer,
                                                       const ChatTemplate* chat_template, DatasetOptions options = {});

}  // namespace pinion
