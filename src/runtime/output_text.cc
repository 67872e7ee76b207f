#include "runtime/output_text.h"

#include <algorithm>
#include <utility>

namespace pinion {

StopMatcher::StopMatcher(std::vector<std::string> stop, bool include_stop)
    : stop_(std::move(stop)), include_stop_(include_stop) {}

std::string StopMatcher::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  size_t end = std::string::npos, begin = 0;
  const std::string* found = nullptr;
  for (const std::string& stop : stop_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    if (at + stop.size() < end || (at + stop.size() == end && at < begin))
      end = at + stop.size(), begin = at, found = &stop;
  }
  if (found) {
    stopped_ = *found;
    held_.resize(include_stop_ ? end : begin);
    return std::exchange(held_, {});
  }
  size_t hold = 0;  // the longest end of the text that begins a stop string
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > hold; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) {
        hold = n;
        break;
      }
    }
  }
  std::string safe = held_.substr(0, held_.size() - hold);
  held_.erase(0, safe.size());
  return safe;
}

std::string StopMatcher::pass(std::string_view text) {
  if (stopped_) return {};
  std::string all = std::exchange(held_, {});
  return all += text;
}

std::string StopMatcher::finish() {
  return stopped_ ? std::string() : std::exchange(held_, {});
}

}  // namespace pinion
