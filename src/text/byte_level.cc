#include "text/byte_level.h"

#include <array>
#include <cstdint>

#include "text/unicode.h"

namespace pinion {
namespace {

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int16_t, 0x144> byte{};  // -1: not of the alphabet
  constexpr Alphabet() {
    for (auto& b : byte) b = -1;
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = itself ? static_cast<char32_t>(b) : next++;
      character[static_cast<size_t>(b)] = c;
      byte[c] = static_cast<int16_t>(b);
    }
  }
};
constexpr Alphabet alphabet;

}  // namespace

void append_byte_level(std::string_view bytes, std::string& out) {
  for (const char c : bytes) append_utf8(alphabet.character[static_cast<unsigned char>(c)], out);
}

bool append_byte_level_bytes(std::string_view token, std::string& out) {
  const size_t before = out.size();
  for (size_t pos = 0; pos < token.size();) {
    const char32_t c = next_char(token, pos);
    if (c >= alphabet.byte.size() || alphabet.byte[c] < 0) {
      out.resize(before);
      return false;
    }
    out.push_back(static_cast<char>(alphabet.byte[c]));
  }
  return true;
}

}  // namespace pinion
