// Splits a text that comes in pieces into the reasoning between <think> and </think> and the answer behind it
// (DeepSeek-R1, Qwen3 and the models that follow them).
#pragma once

#include <string>
#include <string_view>

namespace pinion {

class ReasoningParser {
 public:
  // open: the prompt ends inside of <think>, so that the text begins with reasoning.
  explicit ReasoningParser(bool open = false) : state_(open ? State::reasoning : State::start) {}
  static bool open_after(std::string_view prompt);
  // What the text since the last call adds. `end`: nothing more comes. Blanks around the tags are left out.
  void add(std::string_view text, bool end, std::string& reasoning, std::string& content);

 private:
  enum class State : uint8_t { start, reasoning, before_answer, answer };
  bool step(bool end, std::string& reasoning, std::string& content);
  State state_;
  bool any_ = false;  // some reasoning has passed
  std::string held_;
};

}  // namespace pinion
