// A hand-written scanner: text up to the next tag, then the tag's tokens until its closing delimiter.
#include "text/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <optional>

#include "text/jinja_unicode.h"

namespace pinion::jinja {
namespace {

constexpr auto npos = std::string_view::npos;

bool digit(char c) {
  return c >= '0' && c <= '9';
}
bool name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), text_(source_) {}

  Result<std::vector<Lexeme>> run() {
    while (true) {
      size_t open = find_tag(at_);
      if (open == npos) {
        add_data(text_.substr(at_));
        break;
      }
      std::string_view data = text_.substr(at_, open - at_);
      char kind = text_[open + 1];
      size_t inside = open + 2;
      char sign = inside < text_.size() && (text_[inside] == '-' || text_[inside] == '+') ? text_[inside] : 0;
      if (sign) ++inside;
      bool raw = kind == '%' && match_raw(inside, "raw").has_value();
      add_data(strip_before(data, sign, kind == '{'));
      advance(inside);
      Status status = kind == '#' ? comment() : raw ? raw_block() : tag(kind == '{');
      if (!status) return std::move(status).error();
    }
    add(Token::end, "");
    return std::move(out_);
  }

 private:
  size_t find_tag(size_t from) const {
    for (size_t i = text_.find('{', from); i != npos && i + 1 < text_.size(); i = text_.find('{', i + 1)) {
      if (text_[i + 1] == '{' || text_[i + 1] == '%' || text_[i + 1] == '#') return i;
    }
    return npos;
  }

  // Moves to `to`, counting lines on the way.
  void advance(size_t to) {
    line_ += static_cast<uint32_t>(
        std::count(text_.begin() + static_cast<ptrdiff_t>(at_), text_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  void add(Token token, std::string text) { out_.push_back({token, line_, std::move(text)}); }
  void add_data(std::string_view data) {
    if (!data.empty()) add(Token::data, std::string(data));
  }

  // What the opening tag leaves of the text before it.
  std::string_view strip_before(std::string_view data, char sign, bool print) const {
    if (sign == '-') return strip_right(data);
    if (sign == '+' || print) return data;
    size_t line_start = data.rfind('\n') + 1;  // npos + 1 == 0
    if (line_start == 0 && !line_starting_) return data;
    return strip_left(data.substr(line_start)).empty() ? data.substr(0, line_start) : data;
  }

  // After a closing delimiter that ends at `end`: what follows of whitespace belongs to it.
  void close(size_t end, char sign, bool trim_newline) {
    if (sign == '-') {
      end = text_.size() - strip_left(text_.substr(end)).size();
    } else if (sign != '+' && trim_newline && end < text_.size() && text_[end] == '\n') {
      ++end;
    }
    advance(end);
    line_starting_ = end > 0 && text_[end - 1] == '\n';
  }

  Status comment() {
    size_t end = text_.find("#}", at_);
    if (end == npos) return syntax_error(line_, "Missing end of comment tag");
    char sign = end > at_ && (text_[end - 1] == '-' || text_[end - 1] == '+') ? text_[end - 1] : 0;
    close(end + 2, sign, true);
    return {};
  }

  struct RawTag {
    size_t end;
    char sign;
  };
  // `at` stands after "{%" and its sign: matches `word` and the closing delimiter.
  std::optional<RawTag> match_raw(size_t at, std::string_view word) const {
    std::string_view rest = strip_left(text_.substr(at));
    if (!rest.starts_with(word)) return std::nullopt;
    rest = strip_left(rest.substr(word.size()));
    char sign = !rest.empty() && (rest[0] == '-' || rest[0] == '+') ? rest[0] : 0;
    if (sign) rest.remove_prefix(1);
    if (!rest.starts_with("%}")) return std::nullopt;
    return RawTag{text_.size() - rest.size() + 2, sign};
  }

  Status raw_block() {
    auto begin = match_raw(at_, "raw");
    close(begin->end, begin->sign, false);
    for (size_t open = text_.find("{%", at_); open != npos; open = text_.find("{%", open + 1)) {
      size_t inside = open + 2;
      char sign = inside < text_.size() && (text_[inside] == '-' || text_[inside] == '+') ? text_[inside] : 0;
      auto end = match_raw(inside + (sign != 0), "endraw");
      if (!end) continue;
      add_data(strip_before(text_.substr(at_, open - at_), sign, false));
      advance(open);
      close(end->end, end->sign, true);
      return {};
    }
    return syntax_error(line_, "Missing end of raw directive");
  }

  Status tag(bool print) {
    add(print ? Token::print_begin : Token::block_begin, "");
    std::string open;  // brackets that wait for their partner; inside them "}}" is two operators
    while (true) {
      size_t next = at_;
      while (next < text_.size()) {
        size_t after = next;
        if (!is_space(decode_point(text_, after))) break;
        next = after;
      }
      advance(next);
      if (at_ >= text_.size()) {
        return syntax_error(
            line_, print ? "unexpected end of template, expected '}}'" : "unexpected end of template, expected '%}'");
      }
      if (open.empty()) {
        std::string_view rest = text_.substr(at_);
        std::string_view closing = print ? "}}" : "%}";
        char sign = rest[0] == '-' || (rest[0] == '+' && !print) ? rest[0] : 0;
        if (rest.substr(sign != 0).starts_with(closing)) {
          add(print ? Token::print_end : Token::block_end, "");
          close(at_ + (sign != 0) + 2, sign, !print);
          return {};
        }
      }
      PINION_OK(token(open));
    }
  }

  Status token(std::string& open) {
    char c = text_[at_];
    if (name_start(c)) {
      size_t end = at_ + 1;
      while (end < text_.size() && (name_start(text_[end]) || digit(text_[end]))) ++end;
      add(Token::name, std::string(text_.substr(at_, end - at_)));
      at_ = end;
      return {};
    }
    if (digit(c)) return number();
    if (c == '"' || c == '\'') return string_literal(c);
    static constexpr std::array<std::string_view, 6> kPairs = {"//", "**", "==", "!=", "<=", ">="};
    for (std::string_view pair : kPairs) {
      if (text_.substr(at_).starts_with(pair)) {
        add(Token::op, std::string(pair));
        at_ += 2;
        return {};
      }
    }
    if (std::string_view("+-/*%~[](){}=><.:|,;").find(c) == npos) {
      size_t end = at_;
      decode_point(text_, end);
      return syntax_error(line_, "unexpected char '" + std::string(text_.substr(at_, end - at_)) + "'");
    }
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty()) return syntax_error(line_, std::string("unexpected '") + c + "'");
      if (open.back() != c) {
        return syntax_error(line_, std::string("unexpected '") + c + "', expected '" + open.back() + "'");
      }
      open.pop_back();
    }
    add(Token::op, std::string(1, c));
    ++at_;
    return {};
  }

  // Digits of `base` from `end` on, single underscores between them; appended to `out` without the underscores.
  size_t digits(size_t end, int base, std::string& out) const {
    auto valid = [&](char c) {
      if (base == 16) return digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
      return c >= '0' && c < '0' + base;
    };
    while (end < text_.size()) {
      size_t at = text_[end] == '_' && !out.empty() ? end + 1 : end;
      if (at >= text_.size() || !valid(text_[at])) break;
      out += text_[at];
      end = at + 1;
    }
    return end;
  }

  Status number() {
    std::string value;
    char next = at_ + 1 < text_.size() ? static_cast<char>(text_[at_ + 1] | 0x20) : 0;
    int base = text_[at_] != '0' ? 10 : next == 'x' ? 16 : next == 'o' ? 8 : next == 'b' ? 2 : 10;
    if (base != 10) {
      size_t end = digits(at_ + 2, base, value);
      if (!value.empty()) {
        add(Token::integer, (base == 16 ? "0x" : base == 8 ? "0o" : "0b") + value);
        at_ = end;
        return {};
      }
    }
    size_t end = digits(at_, 10, value);
    bool after_dot =
        !out_.empty() && out_.back().token == Token::op && out_.back().text == "." && at_ > 0 && text_[at_ - 1] == '.';
    bool real = false;
    if (!after_dot) {
      if (end + 1 < text_.size() && text_[end] == '.' && digit(text_[end + 1])) {
        std::string fraction;
        end = digits(end + 1, 10, fraction);
        value += "." + fraction;
        real = true;
      }
      if (end < text_.size() && (text_[end] | 0x20) == 'e') {
        size_t at = end + 1;
        std::string exponent = "e";
        if (at < text_.size() && (text_[at] == '+' || text_[at] == '-')) exponent += text_[at++];
        if (at < text_.size() && digit(text_[at])) {
          end = digits(at, 10, exponent);
          value += exponent;
          real = true;
        }
      }
    }
    if (!real && value.size() > 1 && value[0] == '0' && value.find_first_not_of('0') != npos) {
      return syntax_error(line_, "leading zeros in an integer: " + value);
    }
    add(real ? Token::real : Token::integer, std::move(value));
    at_ = end;
    return {};
  }

  Status string_literal(char quote) {
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) return syntax_error(line_, std::string("unexpected char ") + quote);
    PINION_TRY(std::string value, unescape(text_.substr(at_ + 1, end - at_ - 1)));
    add(Token::string, std::move(value));
    advance(end + 1);
    return {};
  }

  Result<std::string> unescape(std::string_view raw) const {
    std::string out;
    out.reserve(raw.size());
    char32_t high = 0;  // the first half of a surrogate pair
    for (size_t i = 0; i < raw.size(); ++i) {
      if (high && !raw.substr(i).starts_with("\\u")) break;
      if (raw[i] != '\\' || i + 1 >= raw.size()) {
        out += raw[i];
        continue;
      }
      char c = raw[++i];
      static constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
      if (size_t k = kFrom.find(c); k != npos) {
        out += kTo[k];
      } else if (c == '\n') {
        continue;  // a continued line
      } else if (c >= '0' && c <= '7') {
        char32_t value = 0;
        size_t stop = std::min(i + 3, raw.size());
        for (; i < stop && raw[i] >= '0' && raw[i] <= '7'; ++i) value = value * 8 + static_cast<char32_t>(raw[i] - '0');
        --i;
        append_point(out, value);
      } else if (c == 'x' || c == 'u' || c == 'U') {
        size_t count = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        std::string_view hex = raw.substr(i + 1, count);
        if (hex.size() != count || hex.find_first_not_of("0123456789abcdefABCDEF") != npos) {
          return syntax_error(line_, std::string("truncated \\") + c + " escape");
        }
        auto value = static_cast<char32_t>(std::stoul(std::string(hex), nullptr, 16));
        i += count;
        bool low = value >= 0xDC00 && value < 0xE000;
        if (high && low) {
          append_point(out, 0x10000 + ((high - 0xD800) << 10) + (value - 0xDC00));
          high = 0;
        } else if (!high && value >= 0xD800 && value < 0xDC00) {
          high = value;
        } else if (high || low || value > 0x10FFFF) {
          return syntax_error(line_, "an escape is no valid character: \\" + std::string(1, c) + std::string(hex));
        } else {
          append_point(out, value);
        }
      } else if (c == 'N') {
        return syntax_error(line_, "\\N{…} escapes are not implemented", Errc::unsupported);
      } else {
        out += '\\';
        out += c;
      }
    }
    if (high) return syntax_error(line_, "a \\u escape is half of a surrogate pair");
    return out;
  }

  const std::string source_;
  std::string_view text_;
  size_t at_ = 0;
  uint32_t line_ = 1;
  bool line_starting_ = true;
  std::vector<Lexeme> out_;
};

}  // namespace

Error syntax_error(uint32_t line, std::string_view what, Errc code) {
  return fail(code, what, "chat template, line " + std::to_string(line));
}

Result<std::vector<Lexeme>> tokenize_template(std::string_view source) {
  if (!valid_utf8(source)) return fail(Errc::corrupt, "the chat template is not valid UTF-8");
  return Lexer(normalize_newlines(source)).run();
}

}  // namespace pinion::jinja
