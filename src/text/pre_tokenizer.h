// The pre-tokenizer of a tokenizer file: a list of steps that cut a piece of text into words, some of which also
// rewrite it. When the last step is the byte-level mapping it is left to the model, which reads bytes directly.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/regex.h"

namespace pinion {

// A text and the ranges of it that are words. Reused from call to call, so that its memory is.
struct Words {
  struct Range {
    size_t begin, end;
    bool at_start;  // begins at offset 0 of the text that was encoded
  };
  std::string_view text;  // the caller's, or `storage`
  std::string storage, scratch;
  std::vector<Range> ranges, next;
};

class PreTokenizer {
 public:
  // `object` null: the whole text is one word.
  static Result<PreTokenizer> parse(const Json* object, std::string_view where);
  // The words are bytes; the model sees them through the byte-level alphabet.
  bool leaves_byte_level() const { return leaves_byte_level_; }
  void run(std::string_view text, bool at_start, Words& words) const;

 private:
  enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
  enum class Kind { split_regex, split_chars, prefix_space, byte_level, metaspace, fixed_length };
  enum class Prepend { always, first, never };
  struct Step {
    Kind kind = Kind::split_regex;
    Behavior behavior = Behavior::isolated;
    bool invert = false;
    std::optional<Regex> regex;            // split_regex
    bool (*is_match)(char32_t) = nullptr;  // split_chars
    std::string replacement;               // metaspace
    Prepend prepend = Prepend::always;     // metaspace
    size_t length = 0;                     // fixed_length, in characters
  };

  Status add(const Json& object, std::string_view where);
  Status add_split(const Json& object, std::string_view where);
  Status add_metaspace(const Json& object, std::string_view where);
  Status add_regex(std::string_view pattern, std::string_view where, Behavior behavior = Behavior::isolated,
                   bool invert = false);
  void add_chars(bool (*is_match)(char32_t), Behavior behavior);
  static Result<Behavior> parse_behavior(const Json& object, std::string_view where,
                                         std::optional<std::string> fallback);

  static void split(const Step& step, Words& words);
  static void rewrite(const Step& step, Words& words);

  std::vector<Step> steps_;
  bool leaves_byte_level_ = false;
};

}  // namespace pinion
