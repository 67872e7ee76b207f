#include "quant/sources/modules.h"

namespace pinion {

Result<ModuleTarget> ModuleTarget::compile(const std::string& text, std::string_view where) {
  ModuleTarget out;
  out.text_ = text;
  if (text.starts_with("re:")) {
    PINION_TRY(Regex regex, Regex::compile(std::string_view(text).substr(3), where));
    out.pattern_.push_back(std::move(regex));
  }
  return out;
}

int ModuleTarget::match(std::string_view module) const {
  if (text_ == module) return 3;
  if (!pattern_.empty()) {
    bool matched = false;  // the leftmost match begins at 0 if any does
    pattern_[0].split(module, [&](size_t begin, size_t, bool is_match) { matched |= is_match && begin == 0; });
    return matched ? 2 : 0;
  }
  return text_ == "Linear" ? 1 : 0;
}

bool wildcard_match(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || (pattern[p] != '*' && pattern[p] == text[t]))) {
      ++p;
      ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace pinion
