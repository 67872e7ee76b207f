// The byte-level alphabet of GPT-2: every byte has a printable character, so that text of any bytes can be written as
// vocabulary entries. 188 bytes stand for themselves, the other 68 are U+0100 onwards in increasing order.
#pragma once

#include <string>
#include <string_view>

namespace pinion {

void append_byte_level(std::string_view bytes, std::string& out);
// The bytes that `token` stands for; false, with `out` untouched, when a character is not of the alphabet.
bool append_byte_level_bytes(std::string_view token, std::string& out);

}  // namespace pinion
