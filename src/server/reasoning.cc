#include "server/reasoning.h"

#include <algorithm>

namespace pinion {
namespace {

constexpr std::string_view kOpen = "<think>", kClose = "</think>", kBlanks = " \t\r\n";

}  // namespace

bool ReasoningParser::open_after(std::string_view prompt) {
  const size_t open = prompt.rfind(kOpen), close = prompt.rfind(kClose);
  return open != std::string_view::npos && (close == std::string_view::npos || close < open);
}

void ReasoningParser::add(std::string_view text, bool end, std::string& reasoning, std::string& content) {
  held_ += text;
  while (step(end, reasoning, content)) {
  }
}

// Takes what can be decided from held_; true when the state changed.
bool ReasoningParser::step(bool end, std::string& reasoning, std::string& content) {
  const size_t first = std::min(held_.find_first_not_of(kBlanks), held_.size());
  if (state_ == State::start) {
    const std::string_view seen = std::string_view(held_).substr(first);
    if (seen.starts_with(kOpen)) {
      held_.erase(0, first + kOpen.size());
      state_ = State::reasoning;
      return true;
    }
    if (!end && kOpen.starts_with(seen)) return false;  // also while there are only blanks
    state_ = State::answer;
    return true;
  }
  if (state_ == State::reasoning) {
    if (!any_) held_.erase(0, first);
    const size_t close = held_.find(kClose);
    // Held back until it is known not to stand before the closing tag: blanks, and what may become the tag.
    size_t pass = std::min(close, held_.size());
    if (close == std::string::npos && !end) {
      for (size_t n = std::min(held_.size(), kClose.size() - 1); n > 0; --n) {
        if (std::string_view(held_).substr(held_.size() - n) == kClose.substr(0, n)) {
          pass = held_.size() - n;
          break;
        }
      }
    }
    const size_t last = pass == 0 ? std::string::npos : held_.find_last_not_of(kBlanks, pass - 1);
    const size_t kept = last == std::string::npos ? 0 : last + 1;
    reasoning.append(held_, 0, kept);
    any_ |= kept > 0;
    if (close == std::string::npos) {
      held_.erase(0, end ? held_.size() : kept);
      return false;
    }
    held_.erase(0, close + kClose.size());
    state_ = State::before_answer;
    return true;
  }
  if (state_ == State::before_answer) {
    held_.erase(0, first);
    if (held_.empty()) return false;
    state_ = State::answer;
    return true;
  }
  content += held_;
  held_.clear();
  return false;
}

}  // namespace pinion
