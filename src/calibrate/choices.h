// Multiple choice (MMLU and its like): which of the answers' letters the model thinks most likely after the question.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "runtime/executor.h"
#include "text/tokenizer.h"

namespace pinion {

// A line of {"question": …, "choices": […], "answer": 1 or "B", "subject": …}; MMLU's own form.
struct ChoiceQuestion {
  std::string subject;
  std::vector<int32_t> prompt;   // the question, the choices by letter, "Answer:"
  std::vector<int32_t> letters;  // the first token of " A", " B" …
  int32_t answer = 0;
};

// Errors name the line. limit: lines to use; 0: all.
Result<std::vector<ChoiceQuestion>> read_choices(const std::filesystem::path& file, const Tokenizer& tokenizer,
                                                 int64_t limit);

struct ChoiceScore {
  int64_t questions = 0, right = 0;
  double accuracy() const { return questions ? static_cast<double>(right) / static_cast<double>(questions) : 0; }
};
struct ChoiceScores {
  ChoiceScore all;
  std::map<std::string, ChoiceScore> subjects;
};

Result<ChoiceScores> answer_choices(Executor& model, const std::vector<ChoiceQuestion>& questions,
                                    const std::function<void(int64_t)>& progress = {});

}  // namespace pinion
