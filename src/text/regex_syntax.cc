#include "text/regex_syntax.h"

#include <algorithm>
#include <vector>

namespace pinion {
namespace {

constexpr int max_class_depth = 16;
constexpr std::string_view space_items = R"(\t-\r\x{85}\p{Z})";
// Alphabetic, marks, decimal digits and connectors: PCRE2's own \w lacks the marks.
constexpr std::string_view word_items =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";

// The items of a class escape that Ruby and PCRE2 understand differently, and whether the escape negates them.
struct Shorthand {
  std::string_view items;
  bool negated = false;
};
bool shorthand(char c, Shorthand& out) {
  switch (c) {
    case 's':
      out = {space_items, false};
      return true;
    case 'S':
      out = {space_items, true};
      return true;
    case 'w':
      out = {word_items, false};
      return true;
    case 'W':
      out = {word_items, true};
      return true;
    case 'd':
      out = {R"(\p{Nd})", false};
      return true;
    case 'D':
      out = {R"(\p{Nd})", true};
      return true;
    case 'h':
      out = {"0-9a-fA-F", false};
      return true;
    case 'H':
      out = {"0-9a-fA-F", true};
      return true;
    default:
      return false;
  }
}

class Rewriter {
 public:
  Rewriter(std::string_view pattern, std::string_view where) : in_(pattern), where_(where) {}

  Result<std::string> run() {
    while (pos_ < in_.size()) PINION_OK(element());
    return std::move(out_);
  }

 private:
  Error bad(std::string_view what) const {
    return fail(Errc::unsupported, "regular expression: " + std::string(what), where_,
                "this tokenizer needs a syntax that is not implemented");
  }
  char peek(size_t ahead = 0) const { return pos_ + ahead < in_.size() ? in_[pos_ + ahead] : '\0'; }

  Status element() {
    const char c = in_[pos_];
    switch (c) {
      case '\\':
        atom_ = out_.size();
        return escape();
      case '[': {
        atom_ = out_.size();
        PINION_TRY(const std::string text, char_class(0));
        out_ += text;
        return {};
      }
      case '(':
        groups_.push_back(out_.size());
        return group_open();
      case ')':
        if (!groups_.empty()) {
          atom_ = groups_.back();
          groups_.pop_back();
        }
        break;
      case '{':
        if (interval()) return {};
        atom_ = out_.size();
        break;
      case '*':
      case '+':
      case '?':
      case '|':
        break;
      default:
        if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) atom_ = out_.size();  // not within a character
    }
    out_.push_back(c);
    ++pos_;
    return {};
  }

  // `(?m:` of Ruby (dot matches newlines) is `(?s:` of PCRE2; Ruby has no other use for these letters.
  Status group_open() {
    out_.push_back('(');
    ++pos_;
    if (peek() == '*') return bad("a verb after '('");
    if (peek() != '?') return {};
    size_t end = pos_ + 1;
    while (end < in_.size() && (in_[end] == 'i' || in_[end] == 'm' || in_[end] == 'x' || in_[end] == '-')) ++end;
    if (end == pos_ + 1 || end >= in_.size() || (in_[end] != ':' && in_[end] != ')')) {
      if (peek(1) == 'C' || peek(1) == 'R' || peek(1) == '&' || (peek(1) >= '0' && peek(1) <= '9')) {
        return bad("a callout or a recursive group");
      }
      return {};
    }
    for (; pos_ < end; ++pos_) out_.push_back(in_[pos_] == 'm' ? 's' : in_[pos_]);
    return {};
  }

  bool interval() {
    size_t end = pos_ + 1;
    while (end < in_.size() && ((in_[end] >= '0' && in_[end] <= '9') || in_[end] == ',')) ++end;
    if (end >= in_.size() || in_[end] != '}' || end == pos_ + 1) return false;
    std::string text(in_.substr(pos_, end + 1 - pos_));
    if (text == "{,}") return false;
    if (text[1] == ',') text.insert(1, "0");
    out_ += text;
    pos_ = end + 1;
    if (peek() == '+') {  // Ruby: the interval, repeated; PCRE2 would read a possessive interval
      out_.insert(atom_, "(?:");
      out_ += ")+";
      ++pos_;
    }
    return true;
  }

  // An escape outside a class.
  Status escape() {
    if (pos_ + 1 >= in_.size()) return bad("it ends in a backslash");
    const char c = in_[pos_ + 1];
    Shorthand set;
    if (shorthand(c, set)) {
      out_ += set.negated ? "[^" : "[";
      out_ += set.items;
      out_ += ']';
      pos_ += 2;
      return {};
    }
    if (c == 'v') {
      out_ += R"(\x0B)";
      pos_ += 2;
      return {};
    }
    if (c == 'b' || c == 'B') {
      const std::string word = "[" + std::string(word_items) + "]";
      const std::string inside = "(?<=" + word + ")", before = "(?=" + word + ")";
      const std::string outside = "(?<!" + word + ")", after = "(?!" + word + ")";
      out_ += c == 'b' ? "(?:" + inside + after + "|" + outside + before + ")"
                       : "(?:" + inside + before + "|" + outside + after + ")";
      pos_ += 2;
      return {};
    }
    return plain_escape(out_);
  }

  // Copies an escape that both understand, with \uHHHH written \x{HHHH}.
  Status plain_escape(std::string& out) {
    const char c = in_[pos_ + 1];
    if (c == 'u') {
      const std::string_view digits = in_.substr(std::min(in_.size(), pos_ + 2), 4);
      if (digits.size() != 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
        return bad("\\u without four hexadecimal digits");
      }
      out.append("\\x{").append(digits).append("}");
      pos_ += 6;
      return {};
    }
    if (c == 'C' || c == 'Q' || c == 'E' || c == 'g' || c == 'K') return bad(std::string("the escape \\") + c);
    out.append(in_.substr(pos_, 2));
    pos_ += 2;
    if ((c == 'p' || c == 'P' || c == 'x') && peek() == '{') {
      const size_t close = in_.find('}', pos_);
      if (close == std::string_view::npos) return bad("'{' without '}'");
      out.append(in_.substr(pos_, close + 1 - pos_));
      pos_ = close + 1;
    }
    return {};
  }

  // One character class, nested ones included, as a PCRE2 expression that matches one character.
  Result<std::string> char_class(int depth) {
    if (depth > max_class_depth) return bad("character classes nested too deep");
    ++pos_;  // '['
    const bool negated = peek() == '^';
    if (negated) ++pos_;
    std::string items;                      // what fits in one PCRE2 class
    std::vector<std::string> alternatives;  // what does not: each an expression for one character
    std::vector<std::string> operands;      // finished operands of &&
    bool first = true;
    for (;; first = false) {
      if (pos_ >= in_.size()) return bad("'[' without ']'");
      const char c = in_[pos_];
      if (c == ']' && !first) break;
      if (c == '&' && peek(1) == '&') {
        pos_ += 2;
        operands.push_back(union_of(items, alternatives));
        items.clear();
        alternatives.clear();
      } else if (c == '[' && peek(1) == ':') {
        const size_t close = in_.find(":]", pos_);
        if (close == std::string_view::npos) return bad("'[:' without ':]'");
        const std::string_view name = in_.substr(pos_, close + 2 - pos_);
        items += name == "[:punct:]" ? R"(\p{P}\p{S})" : name == "[:word:]" ? word_items : name;
        pos_ = close + 2;
      } else if (c == '[') {
        PINION_TRY(std::string nested, char_class(depth + 1));
        alternatives.push_back(std::move(nested));
      } else if (c == '\\') {
        if (pos_ + 1 >= in_.size()) return bad("it ends in a backslash");
        Shorthand set;
        if (shorthand(in_[pos_ + 1], set)) {
          if (set.negated) {
            alternatives.push_back("[^" + std::string(set.items) + "]");
          } else {
            items += set.items;
          }
          pos_ += 2;
        } else if (in_[pos_ + 1] == 'v') {
          items += R"(\x0B)";
          pos_ += 2;
        } else {
          PINION_OK(plain_escape(items));
        }
      } else {
        if (c == ']') items.push_back('\\');
        items.push_back(c);
        ++pos_;
      }
    }
    ++pos_;  // ']'
    if (operands.empty() && alternatives.empty()) return (negated ? "[^" : "[") + items + "]";
    operands.push_back(union_of(items, alternatives));
    std::string all = "(?:";
    for (size_t i = 0; i + 1 < operands.size(); ++i) all += "(?=" + operands[i] + ")";
    all += operands.back() + ")";
    return negated ? "(?:(?!" + all + ")(?s:.))" : all;
  }

  static std::string union_of(const std::string& items, const std::vector<std::string>& alternatives) {
    std::string text = "(?:";
    for (const auto& alternative : alternatives) text += alternative + "|";
    if (!items.empty()) {
      text += "[" + items + "]";
    } else if (alternatives.empty()) {
      text += "(?!)";
    } else {
      text.pop_back();
    }
    return text + ")";
  }

  std::string_view in_, where_;
  size_t pos_ = 0;
  std::string out_;
  size_t atom_ = 0;             // where the last atom begins in out_
  std::vector<size_t> groups_;  // where the open groups begin in out_
};

}  // namespace

Result<std::string> ruby_to_pcre2(std::string_view pattern, std::string_view where) {
  return Rewriter(pattern, where).run();
}

}  // namespace pinion
