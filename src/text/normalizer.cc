#include "text/normalizer.h"

#include <algorithm>

#include "text/byte_level.h"
#include "text/json_fields.h"

namespace pinion {
namespace {

constexpr size_t max_steps = 64;
constexpr size_t growth_floor = size_t{1} << 20, growth_factor = 64;

template <class PerChar>
void rewrite(std::string& text, PerChar&& per_char) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) per_char(next_char(text, pos), out);
  text = std::move(out);
}

void clean_nmt(char32_t c, std::string& out) {
  const auto in = [c](char32_t low, char32_t high) { return c >= low && c <= high; };
  if (in(1, 8) || c == 0xB || in(0xE, 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) return;
  const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || in(0x200B, 0x200F) || c == 0x2028 ||
                     c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
  append_utf8(space ? U' ' : c, out);
}

void lowercase(std::string& text) {
  rewrite(text, [](char32_t c, std::string& out) { append_lowercase(c, out); });
}

}  // namespace

Result<Replacement> Replacement::parse(const Json& object, std::string_view where) {
  Replacement made;
  PINION_TRY(made.content_, string_field(object, "content", where));
  const Json* pattern = find_field(object, "pattern");
  if (pattern && find_field(*pattern, "String")) {
    PINION_TRY(made.literal_, string_field(*pattern, "String", where));
    if (made.literal_.empty()) return wrong_field("pattern", "a string that is not empty", where);
    return made;
  }
  if (!pattern || !find_field(*pattern, "Regex")) return wrong_field("pattern", "{\"String\"} or {\"Regex\"}", where);
  PINION_TRY(const std::string regex, string_field(*pattern, "Regex", where));
  PINION_TRY(made.regex_, Regex::compile(regex, where));
  return made;
}

bool Replacement::single_char() const {
  return !regex_ && is_one_char(literal_);
}

void Replacement::apply(std::string& text, size_t limit) const {
  limit = std::max(limit, text.size());
  std::string out;
  if (regex_) {
    bool fits = true;
    regex_->split(text, [&](size_t begin, size_t end, bool is_match) {
      if (!fits) return;
      out += is_match ? std::string_view(content_) : std::string_view(text).substr(begin, end - begin);
      fits = out.size() <= limit;
    });
    if (fits) text = std::move(out);
    return;
  }
  size_t found = text.find(literal_), done = 0;
  if (found == std::string::npos) return;
  out.reserve(text.size() + text.size() / 4);
  for (; found != std::string::npos; found = text.find(literal_, done)) {
    out.append(text, done, found - done).append(content_);
    done = found + literal_.size();
    if (out.size() > limit) return;
  }
  out.append(text, done);
  text = std::move(out);
}

struct Normalizer::Apply {
  std::string& text;
  size_t limit;

  void operator()(NormalForm form) const { normalize_unicode(text, form); }
  void operator()(const Lowercase&) const { lowercase(text); }
  void operator()(const Strip& step) const {
    size_t begin = 0, end = text.size();
    for (size_t pos = 0; step.left && pos < end && is_whitespace(next_char(text, pos));) begin = pos;
    while (step.right && end > begin) {
      size_t start = previous_char(text, end), pos = start;
      if (!is_whitespace(next_char(text, pos))) break;
      end = start;
    }
    text = text.substr(begin, end - begin);
  }
  void operator()(const StripAccents&) const {
    rewrite(text, [](char32_t c, std::string& out) {
      if (!is_mark(c)) append_utf8(c, out);
    });
  }
  void operator()(const Replacement& step) const { step.apply(text, limit); }
  void operator()(const Prepend& step) const {
    if (!text.empty()) text.insert(0, step.text);
  }
  void operator()(const ByteLevel&) const {
    std::string out;
    append_byte_level(text, out);
    text = std::move(out);
  }
  void operator()(const Nmt&) const { rewrite(text, clean_nmt); }
  void operator()(const Bert& step) const {
    if (step.clean) {
      rewrite(text, [](char32_t c, std::string& out) {
        if (c == 0 || c == replacement_char || is_control(c)) return;
        append_utf8(is_whitespace(c) ? U' ' : c, out);
      });
    }
    if (step.cjk) {
      rewrite(text, [](char32_t c, std::string& out) {
        if (is_cjk_ideograph(c)) {
          out.push_back(' ');
          append_utf8(c, out);
          out.push_back(' ');
        } else {
          append_utf8(c, out);
        }
      });
    }
    if (step.accents) {
      normalize_unicode(text, NormalForm::nfd);
      rewrite(text, [](char32_t c, std::string& out) {
        if (!is_nonspacing(c)) append_utf8(c, out);
      });
    }
    if (step.lowercase) lowercase(text);
  }
  void operator()(const PrecompiledCharsmap& map) const { map.apply(text); }
};

void Normalizer::apply(std::string& text) const {
  const Apply apply{text, growth_floor + text.size() * growth_factor};
  for (const Step& step : steps_) std::visit(apply, step);
}

Result<Normalizer> Normalizer::parse(const Json* object, std::string_view where) {
  Normalizer made;
  if (object) PINION_OK(made.add(*object, where));
  return made;
}

Status Normalizer::add(const Json& object, std::string_view where) {
  PINION_TRY(const std::string type, string_field(object, "type", where));
  if (type == "Sequence") {
    PINION_TRY(const Json* list, array_field(object, "normalizers", where));
    for (const Json& item : *list) PINION_OK(add(item, where));
    return {};
  }
  if (steps_.size() >= max_steps) return fail(Errc::unsupported, "more than 64 normalizer steps", where);
  if (type == "NFC") {
    steps_.emplace_back(NormalForm::nfc);
  } else if (type == "NFD") {
    steps_.emplace_back(NormalForm::nfd);
  } else if (type == "NFKC") {
    steps_.emplace_back(NormalForm::nfkc);
  } else if (type == "NFKD") {
    steps_.emplace_back(NormalForm::nfkd);
  } else if (type == "Lowercase") {
    steps_.emplace_back(Lowercase{});
  } else if (type == "Strip") {
    Strip step{};
    PINION_TRY(step.left, bool_field(object, "strip_left", where));
    PINION_TRY(step.right, bool_field(object, "strip_right", where));
    steps_.emplace_back(step);
  } else if (type == "StripAccents") {
    steps_.emplace_back(StripAccents{});
  } else if (type == "Replace") {
    PINION_TRY(Replacement step, Replacement::parse(object, where));
    steps_.emplace_back(std::move(step));
  } else if (type == "Prepend") {
    Prepend step;
    PINION_TRY(step.text, string_field(object, "prepend", where));
    steps_.emplace_back(std::move(step));
  } else if (type == "ByteLevel") {
    steps_.emplace_back(ByteLevel{});
  } else if (type == "Nmt") {
    steps_.emplace_back(Nmt{});
  } else if (type == "Precompiled") {
    PINION_TRY(const std::string blob, string_field(object, "precompiled_charsmap", where, ""));
    PINION_TRY(PrecompiledCharsmap step, PrecompiledCharsmap::parse(blob, where));
    steps_.emplace_back(std::move(step));
  } else if (type == "BertNormalizer") {
    Bert step{};
    PINION_TRY(step.clean, bool_field(object, "clean_text", where, true));
    PINION_TRY(step.cjk, bool_field(object, "handle_chinese_chars", where, true));
    PINION_TRY(step.lowercase, bool_field(object, "lowercase", where, true));
    PINION_TRY(step.accents, bool_field(object, "strip_accents", where, step.lowercase));
    steps_.emplace_back(step);
  } else {
    return fail(Errc::unsupported, "normalizer type \"" + type + "\" is not implemented", where,
                "use a model with another tokenizer");
  }
  return {};
}

}  // namespace pinion
