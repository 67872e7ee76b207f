// The normalizer of a tokenizer file: a list of steps that rewrite a piece of text before it is split.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/precompiled_charsmap.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace pinion {

// Replaces every match of a string or regular expression; also a decoder step. A result larger than both `limit` and
// the text is not made, the text stays as it is: a chain of replacements must not make text explode.
class Replacement {
 public:
  static Result<Replacement> parse(const Json& object, std::string_view where);
  void apply(std::string& text, size_t limit) const;
  bool single_char() const;  // the pattern is one literal character

 private:
  std::string literal_;  // used when regex_ is empty
  std::optional<Regex> regex_;
  std::string content_;
};

class Normalizer {
 public:
  // `object` null: no steps.
  static Result<Normalizer> parse(const Json* object, std::string_view where);
  bool identity() const { return steps_.empty(); }
  void apply(std::string& text) const;

 private:
  struct Lowercase {};
  struct Strip {
    bool left, right;
  };
  struct StripAccents {};
  struct Prepend {
    std::string text;
  };
  struct ByteLevel {};
  struct Nmt {};
  struct Bert {
    bool clean, cjk, accents, lowercase;
  };
  using Step = std::variant<NormalForm, Lowercase, Strip, StripAccents, Replacement, Prepend, ByteLevel, Nmt, Bert,
                            PrecompiledCharsmap>;
  Status add(const Json& object, std::string_view where);
  struct Apply;
  std::vector<Step> steps_;
};

}  // namespace pinion
