// UTF-8 and Unicode: decoding that replaces bad bytes as Rust's lossy rule does (one U+FFFD per maximal invalid part),
// the character classes the tokenizers split on, and the four normalisation forms. Everything is linear, or n log n.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pinion {

inline constexpr char32_t replacement_char = 0xFFFD;

enum class Utf8Unit { valid, invalid, incomplete };
// Looks at the start of `text` (not empty): a whole character, a maximal invalid part, or the beginning of a character
// that the end of `text` cuts off. `length` is the number of bytes of it.
Utf8Unit scan_utf8(std::string_view text, size_t& length);

bool is_valid_utf8(std::string_view text);
bool is_one_char(std::string_view text);  // exactly one valid character
std::string lossy_utf8(std::string_view bytes);

// The character at `pos` of valid UTF-8; moves `pos` behind it.
inline char32_t next_char(std::string_view text, size_t& pos) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  const char32_t first = byte(pos);
  if (first < 0x80) return ++pos, first;
  if (first < 0xE0) return pos += 2, (first & 0x1F) << 6 | (byte(pos - 1) & 0x3F);
  if (first < 0xF0) return pos += 3, (first & 0x0F) << 12 | (byte(pos - 2) & 0x3F) << 6 | (byte(pos - 1) & 0x3F);
  pos += 4;
  return (first & 0x07) << 18 | (byte(pos - 3) & 0x3F) << 12 | (byte(pos - 2) & 0x3F) << 6 | (byte(pos - 1) & 0x3F);
}
// Where the character that ends at `pos` (> 0) of valid UTF-8 begins.
inline size_t previous_char(std::string_view text, size_t pos) {
  --pos;
  while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) --pos;
  return pos;
}
void append_utf8(char32_t c, std::string& out);
std::string to_utf8(char32_t c);

// Bytes in, whole characters out: an unfinished character is held until its rest comes.
class Utf8Stream {
 public:
  void push(std::string_view bytes, std::string& out);
  void finish(std::string& out);

 private:
  std::string held_;  // at most 3 bytes between calls
};

bool is_whitespace(char32_t c);   // Unicode White_Space
bool is_numeric(char32_t c);      // category N*
bool is_punctuation(char32_t c);  // ASCII punctuation or category P*
bool is_mark(char32_t c);         // category M*
bool is_nonspacing(char32_t c);   // category Mn
bool is_control(char32_t c);      // category Cc, Cf, Co, Cs; tab, LF and CR excepted
bool is_word_char(char32_t c);    // regular expressions' \w
bool is_cjk_ideograph(char32_t c);
void append_lowercase(char32_t c, std::string& out);

enum class NormalForm { nfc, nfd, nfkc, nfkd };
void normalize_unicode(std::string& text, NormalForm form);

}  // namespace pinion
