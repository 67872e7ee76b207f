// Python's view of text on top of UTF-8: code points, str.isspace, case mapping, repr quoting. All input is valid
// UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pinion::jinja {

size_t count_points(std::string_view text);
bool valid_utf8(std::string_view text);
// Byte offset of code point `index` (text.size() when past the end). `points` is text's length in code points.
size_t point_offset(std::string_view text, size_t points, size_t index);
char32_t decode_point(std::string_view text, size_t& offset);  // advances offset
void append_point(std::string& out, char32_t c);

bool is_space(char32_t c);  // str.isspace
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);
bool is_digit(char32_t c);
bool is_numeric(char32_t c);
bool is_printable(char32_t c);
bool is_lower(char32_t c);
bool is_upper(char32_t c);
bool is_title(char32_t c);

std::string lower(std::string_view text);
std::string upper(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);
std::string swapcase(std::string_view text);
std::string casefold(std::string_view text);

std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);
// Strips any of the code points in `chars`.
std::string_view strip_left(std::string_view text, std::string_view chars);
std::string_view strip_right(std::string_view text, std::string_view chars);

void append_quoted(std::string& out, std::string_view text);  // Python's repr of a str
std::string escape_html(std::string_view text);

}  // namespace pinion::jinja
