// SentencePiece's compiled normaliser: a Darts double-array trie from byte strings to replacements, applied to each
// grapheme cluster as a whole when it is short, otherwise to its characters.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace pinion {

class PrecompiledCharsmap {
 public:
  static Result<PrecompiledCharsmap> parse(std::string_view base64, std::string_view where);
  void apply(std::string& text) const;

 private:
  std::optional<std::string_view> replacement(std::string_view chunk) const;
  std::vector<uint32_t> units_;
  std::string strings_;  // each ends in NUL
};

}  // namespace pinion
