// A compiled regular expression of a tokenizer file: PCRE2 with its JIT, Unicode, `^` and `$` at line ends as in Ruby.
// Every match runs under a limit, so no pattern and no text can hang a request.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace pinion {

class Regex {
 public:
  // `pattern` in Oniguruma's Ruby syntax.
  static Result<Regex> compile(std::string_view pattern, std::string_view where);
  // One that matches exactly `text`.
  static Result<Regex> literal(std::string_view text, std::string_view where);

  // Calls emit(begin, end, is_match) for pieces that cover all of `text` (valid UTF-8) in order; matches may be empty.
  // Where a match exceeds the limits, the rest of the text is one non-matching piece.
  template <class Emit>
  void split(std::string_view text, Emit&& emit) const {
    size_t done = 0, begin = 0, end = 0;
    for (size_t pos = 0; pos <= text.size() && find(text, pos, begin, end);) {
      if (begin > done) emit(done, begin, false);
      emit(begin, end, true);
      done = end;
      pos = end > begin ? end : after(text, end);
    }
    if (done < text.size()) emit(done, text.size(), false);
  }
  std::string replace(std::string_view text, std::string_view with) const;

 private:
  bool find(std::string_view text, size_t from, size_t& begin, size_t& end) const;
  static size_t after(std::string_view text, size_t pos);  // the next character's end, or size() + 1

  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace pinion
