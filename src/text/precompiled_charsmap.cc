#include "text/precompiled_charsmap.h"

#include <utf8proc.h>

#include "text/unicode.h"

namespace pinion {
namespace {

constexpr size_t max_replacement = 256;  // bytes; longer ones, which no real map has, are not applied

std::optional<std::string> decode_base64(std::string_view text) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  for (const char c : text) {
    uint32_t value;
    if (c >= 'A' && c <= 'Z') {
      value = static_cast<uint32_t>(c - 'A');
    } else if (c >= 'a' && c <= 'z') {
      value = static_cast<uint32_t>(c - 'a' + 26);
    } else if (c >= '0' && c <= '9') {
      value = static_cast<uint32_t>(c - '0' + 52);
    } else if (c == '+' || c == '/') {
      value = c == '+' ? 62 : 63;
    } else {
      return {};
    }
    bits = bits << 6 | value;
    count += 6;
    if (count >= 8) {
      count -= 8;
      out.push_back(static_cast<char>(bits >> count & 0xFF));
    }
  }
  return out;
}

uint32_t little_endian(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[at + i])) << 8 * i;
  return value;
}

}  // namespace

Result<PrecompiledCharsmap> PrecompiledCharsmap::parse(std::string_view base64, std::string_view where) {
  PrecompiledCharsmap map;
  if (base64.empty()) return map;
  const auto blob = decode_base64(base64);
  const size_t size = blob && blob->size() >= 4 ? little_endian(*blob, 0) : 0;
  if (!blob || blob->size() < 4 || size % 4 != 0 || size > blob->size() - 4 ||
      !is_valid_utf8(std::string_view(*blob).substr(4 + size))) {
    return fail(Errc::corrupt, "precompiled_charsmap is not a SentencePiece character map", where,
                "take the file from the model's publisher again");
  }
  for (size_t at = 4; at < 4 + size; at += 4) map.units_.push_back(little_endian(*blob, at));
  map.strings_ = blob->substr(4 + size);
  return map;
}

// The reference takes the shortest entry that begins the chunk.
std::optional<std::string_view> PrecompiledCharsmap::replacement(std::string_view chunk) const {
  const auto offset = [](uint32_t unit) { return size_t{unit >> 10} << ((unit & 1u << 9) >> 6); };
  if (units_.empty()) return {};
  size_t node = offset(units_[0]);
  for (const char c : chunk) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == 0) return {};
    node ^= byte;
    if (node >= units_.size()) return {};
    const uint32_t unit = units_[node];
    if ((unit & (1u << 31 | 0xFFu)) != byte) return {};
    node ^= offset(unit);
    if ((unit >> 8 & 1) == 0) continue;
    if (node >= units_.size()) return {};
    const size_t at = units_[node] & 0x7FFFFFFFu;
    // An index into the middle of a character would break the text's UTF-8.
    if (at >= strings_.size() || (static_cast<unsigned char>(strings_[at]) & 0xC0) == 0x80) return {};
    const std::string_view rest = std::string_view(strings_).substr(at);
    const std::string_view found = rest.substr(0, rest.find('\0'));
    if (found.size() > max_replacement) return {};
    return found;
  }
  return {};
}

void PrecompiledCharsmap::apply(std::string& text) const {
  std::string out;
  out.reserve(text.size());
  const std::string_view view(text);
  const auto emit = [&](size_t begin, size_t end) {
    if (end - begin < 6) {
      if (const auto whole = replacement(view.substr(begin, end - begin))) {
        out += *whole;
        return;
      }
    }
    for (size_t pos = begin; pos < end;) {
      const size_t start = pos;
      next_char(view, pos);
      const auto part = view.substr(start, pos - start);
      out += replacement(part).value_or(part);
    }
  };
  size_t begin = 0;
  utf8proc_int32_t state = 0, previous = -1;
  for (size_t pos = 0; pos < view.size();) {
    const size_t start = pos;
    const auto c = static_cast<utf8proc_int32_t>(next_char(view, pos));
    if (previous >= 0 && utf8proc_grapheme_break_stateful(previous, c, &state)) {
      emit(begin, start);
      begin = start;
    }
    previous = c;
  }
  emit(begin, view.size());
  text = std::move(out);
}

}  // namespace pinion
