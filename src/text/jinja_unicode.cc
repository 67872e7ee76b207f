// Unicode properties come from utf8proc; what Python adds to the simple case mappings is listed here.
#include "text/jinja_unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdio>

namespace pinion::jinja {
namespace {

bool ascii(char32_t c) {
  return c < 0x80;
}

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

// Letters whose upper case is several letters (Unicode SpecialCasing.txt, the unconditional part for Latin and
// Armenian).
struct Expansion {
  char32_t from;
  const char* upper;
  const char* title;
};
constexpr Expansion kExpansions[] = {
    {0xDF, "SS", "Ss"},     {0x149, "ʼN", "ʼN"},  {0x1F0, "J̌", "J̌"},    {0x390, "Ϊ́", "Ϊ́"},    {0x3B0, "Ϋ́", "Ϋ́"},
    {0x587, "ԵՒ", "Եւ"},    {0x1E96, "H̱", "H̱"},   {0x1E97, "T̈", "T̈"},   {0x1E98, "W̊", "W̊"},   {0x1E99, "Y̊", "Y̊"},
    {0x1E9A, "Aʾ", "Aʾ"},   {0xFB00, "FF", "Ff"}, {0xFB01, "FI", "Fi"}, {0xFB02, "FL", "Fl"}, {0xFB03, "FFI", "Ffi"},
    {0xFB04, "FFL", "Ffl"}, {0xFB05, "ST", "St"}, {0xFB06, "ST", "St"}, {0xFB13, "ՄՆ", "Մն"}, {0xFB14, "ՄԵ", "Մե"},
    {0xFB15, "ՄԻ", "Մի"},   {0xFB16, "ՎՆ", "Վն"}, {0xFB17, "ՄԽ", "Մխ"},
};

const Expansion* expansion(char32_t c) {
  if (ascii(c)) return nullptr;
  for (const Expansion& e : kExpansions) {
    if (e.from == c) return &e;
  }
  return nullptr;
}

void append_upper(std::string& out, char32_t c) {
  if (ascii(c)) {
    out += static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c);
  } else if (const Expansion* e = expansion(c)) {
    out += e->upper;
  } else {
    append_point(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
  }
}

void append_title(std::string& out, char32_t c) {
  if (ascii(c)) {
    append_upper(out, c);
  } else if (const Expansion* e = expansion(c)) {
    out += e->title;
  } else {
    append_point(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
  }
}

bool is_cased(char32_t c) {
  if (ascii(c)) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  return is_lower(c) || is_upper(c) || is_title(c);
}

// Marks and some punctuation do not end a word for the final sigma.
bool is_case_ignorable(char32_t c) {
  utf8proc_category_t k = category(c);
  return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF ||
         k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' || c == ':' || c == 0x2019;
}

// A capital sigma that follows a letter and precedes none becomes the final form.
bool final_sigma(std::string_view text, size_t before, size_t after) {
  bool follows = false;
  for (size_t i = before; i > 0;) {
    size_t start = i - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    size_t offset = start;
    char32_t c = decode_point(text, offset);
    i = start;
    if (is_case_ignorable(c)) continue;
    follows = is_cased(c);
    break;
  }
  if (!follows) return false;
  for (size_t i = after; i < text.size();) {
    char32_t c = decode_point(text, i);
    if (is_case_ignorable(c)) continue;
    return !is_cased(c);
  }
  return true;
}

void append_lower(std::string& out, std::string_view text, size_t before, size_t after, char32_t c) {
  if (ascii(c)) {
    out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  } else if (c == 0x3A3) {
    append_point(out, final_sigma(text, before, after) ? 0x3C2 : 0x3C3);
  } else if (c == 0x130) {
    out += "i\u0307";
  } else {
    append_point(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

}  // namespace

size_t count_points(std::string_view text) {
  size_t n = 0;
  for (char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

bool valid_utf8(std::string_view text) {
  size_t offset = 0;
  while (offset < text.size()) {
    if (static_cast<unsigned char>(text[offset]) < 0x80) {
      ++offset;
      continue;
    }
    utf8proc_int32_t c;
    auto n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + offset),
                              static_cast<utf8proc_ssize_t>(text.size() - offset), &c);
    if (n <= 0) return false;
    offset += static_cast<size_t>(n);
  }
  return true;
}

size_t point_offset(std::string_view text, size_t points, size_t index) {
  if (index >= points) return text.size();
  if (points == text.size()) return index;
  size_t offset = 0;
  for (; index > 0; --index) {
    ++offset;
    while (offset < text.size() && (static_cast<unsigned char>(text[offset]) & 0xC0) == 0x80) ++offset;
  }
  return offset;
}

char32_t decode_point(std::string_view text, size_t& offset) {
  unsigned char first = static_cast<unsigned char>(text[offset]);
  if (first < 0x80) {
    ++offset;
    return first;
  }
  utf8proc_int32_t c;
  auto n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + offset),
                            static_cast<utf8proc_ssize_t>(text.size() - offset), &c);
  if (n <= 0) {
    ++offset;
    return 0xFFFD;
  }
  offset += static_cast<size_t>(n);
  return static_cast<char32_t>(c);
}

void append_point(std::string& out, char32_t c) {
  utf8proc_uint8_t buffer[4];
  auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), buffer);
  out.append(reinterpret_cast<char*>(buffer), static_cast<size_t>(n));
}

bool is_space(char32_t c) {
  if (c <= 0x20) return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_alpha(char32_t c) {
  if (ascii(c)) return is_cased(c);
  auto k = category(c);
  return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}
bool is_decimal(char32_t c) {
  return ascii(c) ? c >= '0' && c <= '9' : category(c) == UTF8PROC_CATEGORY_ND;
}
bool is_digit(char32_t c) {
  return is_decimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 || (c >= 0x2074 && c <= 0x2079) ||
         (c >= 0x2080 && c <= 0x2089) || (c >= 0x2460 && c <= 0x2468);
}
bool is_numeric(char32_t c) {
  if (is_digit(c)) return true;
  if (ascii(c)) return false;
  auto k = category(c);
  return k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}
bool is_printable(char32_t c) {
  if (ascii(c)) return c >= 0x20 && c != 0x7F;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}
bool is_lower(char32_t c) {
  if (ascii(c)) return c >= 'a' && c <= 'z';
  return category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA;
}
bool is_upper(char32_t c) {
  return ascii(c) ? c >= 'A' && c <= 'Z' : category(c) == UTF8PROC_CATEGORY_LU;
}
bool is_title(char32_t c) {
  return !ascii(c) && category(c) == UTF8PROC_CATEGORY_LT;
}

std::string lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    size_t before = i;
    char32_t c = decode_point(text, i);
    append_lower(out, text, before, i, c);
  }
  return out;
}

std::string upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) append_upper(out, decode_point(text, i));
  return out;
}

std::string capitalize(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    size_t before = i;
    char32_t c = decode_point(text, i);
    if (before == 0) {
      append_title(out, c);
    } else {
      append_lower(out, text, before, i, c);
    }
  }
  return out;
}

std::string title(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool in_word = false;
  for (size_t i = 0; i < text.size();) {
    size_t before = i;
    char32_t c = decode_point(text, i);
    if (in_word) {
      append_lower(out, text, before, i, c);
    } else {
      append_title(out, c);
    }
    in_word = is_cased(c);
  }
  return out;
}

std::string swapcase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    size_t before = i;
    char32_t c = decode_point(text, i);
    if (is_upper(c)) {
      append_lower(out, text, before, i, c);
    } else if (is_lower(c)) {
      append_upper(out, c);
    } else {
      append_point(out, c);
    }
  }
  return out;
}

std::string casefold(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    char32_t c = decode_point(text, i);
    if (c == 0xDF || c == 0x1E9E) {
      out += "ss";
    } else if (c == 0x3C2) {
      append_point(out, 0x3C3);
    } else {
      append_lower(out, {}, 0, 0, c);
    }
  }
  return out;
}

std::string_view strip_left(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    size_t next = i;
    if (!is_space(decode_point(text, next))) break;
    i = next;
  }
  return text.substr(i);
}

std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    size_t offset = start;
    if (!is_space(decode_point(text, offset))) break;
    text = text.substr(0, start);
  }
  return text;
}

// UTF-8 is self-synchronising, so "is this character in the set" is a substring search.
std::string_view strip_left(std::string_view text, std::string_view chars) {
  while (!text.empty()) {
    size_t next = 0;
    decode_point(text, next);
    if (chars.find(text.substr(0, next)) == std::string_view::npos) break;
    text.remove_prefix(next);
  }
  return text;
}

std::string_view strip_right(std::string_view text, std::string_view chars) {
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (chars.find(text.substr(start)) == std::string_view::npos) break;
    text = text.substr(0, start);
  }
  return text;
}

void append_quoted(std::string& out, std::string_view text) {
  bool both = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  char quote = both ? '"' : '\'';
  out += quote;
  char buffer[16];
  for (size_t i = 0; i < text.size();) {
    size_t before = i;
    char32_t c = decode_point(text, i);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out.append(text, before, i - before);
    } else {
      const char* format = c <= 0xFF ? "\\x%02x" : c <= 0xFFFF ? "\\u%04x" : "\\U%08x";
      std::snprintf(buffer, sizeof buffer, format, static_cast<unsigned>(c));
      out += buffer;
    }
  }
  out += quote;
}

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace pinion::jinja
