#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace pinion {

Utf8Unit scan_utf8(std::string_view text, size_t& length) {
  const auto first = static_cast<unsigned char>(text[0]);
  length = 1;
  if (first < 0x80) return Utf8Unit::valid;
  size_t rest;
  unsigned char low = 0x80, high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    rest = 1;
  } else if (first >= 0xE0 && first <= 0xEF) {
    rest = 2;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    rest = 3;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return Utf8Unit::invalid;
  }
  for (; length <= rest; ++length) {
    if (length == text.size()) return Utf8Unit::incomplete;
    const auto byte = static_cast<unsigned char>(text[length]);
    if (byte < low || byte > high) return Utf8Unit::invalid;
    low = 0x80, high = 0xBF;
  }
  return Utf8Unit::valid;
}

bool is_valid_utf8(std::string_view text) {
  size_t pos = 0, length;
  while (pos < text.size()) {
    if (static_cast<unsigned char>(text[pos]) < 0x80) {
      ++pos;
      continue;
    }
    if (scan_utf8(text.substr(pos), length) != Utf8Unit::valid) return false;
    pos += length;
  }
  return true;
}

bool is_one_char(std::string_view text) {
  size_t length;
  return !text.empty() && scan_utf8(text, length) == Utf8Unit::valid && length == text.size();
}

void append_utf8(char32_t c, std::string& out) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
    return;
  }
  if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | c >> 6));
  } else {
    if (c < 0x10000) {
      out.push_back(static_cast<char>(0xE0 | c >> 12));
    } else {
      out.push_back(static_cast<char>(0xF0 | c >> 18));
      out.push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    }
    out.push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
  }
  out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
}

std::string to_utf8(char32_t c) {
  std::string out;
  append_utf8(c, out);
  return out;
}

std::string lossy_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  Utf8Stream stream;
  stream.push(bytes, out);
  stream.finish(out);
  return out;
}

void Utf8Stream::push(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!held_.empty()) {
    joined = std::move(held_);
    held_.clear();
    joined += bytes;
    bytes = joined;
  }
  size_t length;
  while (!bytes.empty()) {
    switch (scan_utf8(bytes, length)) {
      case Utf8Unit::valid:
        out += bytes.substr(0, length);
        break;
      case Utf8Unit::invalid:
        append_utf8(replacement_char, out);
        break;
      case Utf8Unit::incomplete:
        held_ = bytes;
        return;
    }
    bytes.remove_prefix(length);
  }
}

void Utf8Stream::finish(std::string& out) {
  if (!held_.empty()) append_utf8(replacement_char, out);
  held_.clear();
}

namespace {

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool in(char32_t c, char32_t low, char32_t high) {
  return c >= low && c <= high;
}

}  // namespace

bool is_whitespace(char32_t c) {
  if (c < 0x80) return c == ' ' || in(c, 9, 13);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || in(c, 0x2000, 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool is_numeric(char32_t c) {
  if (c < 0x80) return in(c, '0', '9');
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) return in(c, '!', '/') || in(c, ':', '@') || in(c, '[', '`') || in(c, '{', '~');
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO;
}

bool is_mark(char32_t c) {
  const auto kind = category(c);
  return c >= 0x80 && kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME;
}

bool is_nonspacing(char32_t c) {
  return c >= 0x80 && category(c) == UTF8PROC_CATEGORY_MN;
}

bool is_control(char32_t c) {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_CC || kind == UTF8PROC_CATEGORY_CF || kind == UTF8PROC_CATEGORY_CO ||
         kind == UTF8PROC_CATEGORY_CS;
}

bool is_word_char(char32_t c) {
  if (c < 0x80) return in(c, '0', '9') || in(c, 'A', 'Z') || in(c, 'a', 'z') || c == '_';
  const auto kind = category(c);
  return (kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_NL) || kind == UTF8PROC_CATEGORY_PC ||
         c == 0x200C || c == 0x200D || in(c, 0x24B6, 0x24E9) || in(c, 0x1F130, 0x1F149) || in(c, 0x1F150, 0x1F169) ||
         in(c, 0x1F170, 0x1F189);
}

bool is_cjk_ideograph(char32_t c) {
  return in(c, 0x4E00, 0x9FFF) || in(c, 0x3400, 0x4DBF) || in(c, 0x20000, 0x2A6DF) || in(c, 0x2A700, 0x2B73F) ||
         in(c, 0x2B740, 0x2B81F) || in(c, 0x2B920, 0x2CEAF) || in(c, 0xF900, 0xFAFF) || in(c, 0x2F800, 0x2FA1F);
}

void append_lowercase(char32_t c, std::string& out) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(in(c, 'A', 'Z') ? c + 32 : c));
  } else if (c == 0x130) {  // the one character whose lower case is two characters
    out += "i\u0307";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
  }
}

void normalize_unicode(std::string& text, NormalForm form) {
  // Below U+0080 every form is the identity, below U+0300 (lead bytes under 0xCC) NFC is.
  const unsigned char stable = form == NormalForm::nfc ? 0xCC : 0x80;
  if (std::all_of(text.begin(), text.end(), [&](char c) { return static_cast<unsigned char>(c) < stable; })) return;
  const bool compose = form == NormalForm::nfc || form == NormalForm::nfkc;
  const bool compat = form == NormalForm::nfkc || form == NormalForm::nfkd;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                                      (compat ? UTF8PROC_COMPAT : UTF8PROC_DECOMPOSE));
  std::vector<utf8proc_int32_t> chars;
  chars.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = next_char(text, pos);
    utf8proc_int32_t parts[32];
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 32, options, &boundary);
    if (count < 0 || count > 32) {
      chars.push_back(static_cast<utf8proc_int32_t>(c));
    } else {
      chars.insert(chars.end(), parts, parts + count);
    }
  }
  // Canonical order by a stable sort of each run of marks: utf8proc's own insertion sort is quadratic in the run.
  const auto combining = [](utf8proc_int32_t c) {
    return c < 0x300 ? utf8proc_propval_t{0} : utf8proc_get_property(c)->combining_class;
  };
  for (size_t i = 0; i < chars.size();) {
    if (combining(chars[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < chars.size() && combining(chars[end]) != 0) ++end;
    std::stable_sort(chars.begin() + static_cast<ptrdiff_t>(i), chars.begin() + static_cast<ptrdiff_t>(end),
                     [&](auto a, auto b) { return combining(a) < combining(b); });
    i = end;
  }
  auto size = static_cast<utf8proc_ssize_t>(chars.size());
  if (compose) {
    size = utf8proc_normalize_utf32(chars.data(), size,
                                    static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    check(size >= 0, "composing decomposed text failed");
  }
  text.clear();
  for (utf8proc_ssize_t i = 0; i < size; ++i) append_utf8(static_cast<char32_t>(chars[static_cast<size_t>(i)]), text);
}

}  // namespace pinion
