// Filters on text and numbers, and the lookup of all filters.
#include "text/jinja_filters.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/jinja_unicode.h"

namespace pinion::jinja {
namespace {

constexpr auto npos = std::string_view::npos;

// Jinja's soft_str: what a text filter works on. Keeps the safe mark.
Value soft(Interpreter& in, const Value& v) {
  return v.is_string() ? v : in.string(in.str(v));
}

// A text filter with no arguments is the method of the same name on soft(self).
template <std::string (*Map)(std::string_view)>
Value map_text(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "filter", {});
  Value s = soft(in, self);
  if (!p.ok() || in.failed() || !in.reserve(s.text().size()) || !in.charge(s.text().size() / 8)) return {};
  return in.string(Map(s.text()), s.markup());
}

// Words start after white space, hyphens and opening brackets; str.title knows more separators.
std::string title_words(std::string_view text) {
  std::string out;
  size_t start = 0;
  auto flush = [&](size_t end) {
    std::string_view word = text.substr(start, end - start);
    size_t first = 0;
    if (!word.empty()) decode_point(word, first);
    out += upper(word.substr(0, first)) + lower(word.substr(first));
  };
  for (size_t i = 0; i < text.size();) {
    size_t before = i;
    char32_t c = decode_point(text, i);
    if (!is_space(c) && c != '-' && c != '(' && c != '{' && c != '[' && c != '<') continue;
    flush(before);
    out.append(text, before, i - before);
    start = i;
  }
  flush(text.size());
  return out;
}

Value trim(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "trim", {"chars"});
  Value s = soft(in, self);
  if (!p.ok() || in.failed() || !in.reserve(s.text().size())) return {};
  std::string_view text = s.text();
  if (!p.has(0) || p[0].is_none()) {
    text = strip_left(strip_right(text));
  } else {
    std::string chars = p.text(0, "");
    if (!in.charge(chars.size() / 64 * (1 + text.size() / 64))) return {};
    text = strip_left(strip_right(text, chars), chars);
  }
  return text.size() == s.text().size() ? s : in.string(std::string(text), s.markup());
}

Value string(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "string", {});
  return p.ok() ? soft(in, self) : Value();
}

Value safe(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "safe", {});
  return p.ok() ? soft(in, self).with_markup(true) : Value();
}

Value escape(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "escape", {});
  Value s = soft(in, self);
  if (!p.ok() || in.failed() || s.markup() || !in.reserve(s.text().size())) return s;
  return in.string(escape_html(s.text()), true);
}

Value forceescape(Interpreter& in, const Value& self, const Args& args) {
  return escape(in, self.with_markup(false), args);
}

Value replace(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "replace", {"old", "new", "count"}, 2);
  if (!p.ok()) return {};
  int64_t limit = p.has(2) && p[2].is_none() ? -1 : p.integer(2, -1);
  std::string from = p.text(0, ""), to = p.text(1, "");
  Value s = soft(in, self).with_markup(false);
  return in.failed() ? Value() : replace_text(in, s, from, to, limit);
}

Value indent(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "indent", {"width", "first", "blank"});
  if (!p.ok()) return {};
  std::string pad;
  if (p.has(0) && p[0].is_string()) {
    pad = p[0].text();
  } else {
    int64_t width = p.integer(0, 4);
    if (!p.ok()) return {};
    if (width > 0) {
      if (!in.reserve(static_cast<size_t>(width))) return {};
      pad.assign(static_cast<size_t>(width), ' ');
    }
  }
  bool first = p.flag(1, false), blank = p.flag(2, false);
  Value s = soft(in, self);
  if (in.failed()) return {};
  std::string out;
  const std::string& text = s.text();
  bool first_line = true;
  for (size_t start = 0; start <= text.size();) {
    size_t end = std::min(text.find('\n', start), text.size());
    std::string_view line = std::string_view(text).substr(start, end - start);
    if (!in.reserve(out.size() + pad.size() + line.size() + 1)) return {};
    if (first_line ? first : blank || !line.empty()) out += pad;
    out += line;
    if (end < text.size()) out += '\n';
    start = end + 1;
    first_line = false;
  }
  return in.string(std::move(out), s.markup());
}

Value center(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "center", {"width"});
  Value s = soft(in, self);
  if (!p.ok() || in.failed()) return {};
  Args method;
  method.positional.push_back(p.value(0, Value::integer(80)));
  return find_method(s, "center")->run(in, s, method);
}

Value truncate(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "truncate", {"length", "killwords", "end", "leeway"});
  int64_t length = p.ok() ? p.integer(0, 255) : 0;
  int64_t leeway = p.has(3) && p[3].is_none() ? 5 : p.ok() ? p.integer(3, 5) : 0;
  if (!p.ok()) return {};
  Value s = self.is_string() ? self : soft(in, self);
  std::string end = p.text(2, "...");
  if (in.failed()) return {};
  auto end_points = static_cast<int64_t>(count_points(end));
  if (length < end_points)
    return in.error("expected length >= " + std::to_string(end_points) + ", got " + std::to_string(length));
  if (leeway < 0) return in.error("expected leeway >= 0, got " + std::to_string(leeway));
  auto have = static_cast<int64_t>(s.points());
  if (have <= leeway || have - leeway <= length) return s;
  std::string cut = s.text().substr(0, point_offset(s.text(), s.points(), static_cast<size_t>(length - end_points)));
  if (!p.flag(1, false)) {
    if (size_t space = cut.rfind(' '); space != npos) cut.resize(space);
  }
  return in.string(cut + end);
}

Value wordcount(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "wordcount", {});
  Value s = soft(in, self);
  if (!p.ok() || in.failed() || !in.charge(s.text().size() / 8)) return {};
  int64_t n = 0;
  bool inside = false;
  for (size_t i = 0; i < s.text().size();) {
    char32_t c = decode_point(s.text(), i);
    bool word = is_alpha(c) || is_numeric(c) || c == '_';
    n += word && !inside;
    inside = word;
  }
  return Value::integer(n);
}

Value format(Interpreter& in, const Value& self, const Args& args) {
  if (!args.positional.empty() && !args.named.empty()) {
    return in.error("can't handle positional and keyword arguments at the same time");
  }
  Value s = soft(in, self);
  if (in.failed()) return {};
  if (args.named.empty()) return format_percent(in, s, in.tuple(args.positional));
  std::vector<Entry> entries;
  for (const auto& [name, value] : args.named) entries.emplace_back(in.string(name), value);
  return format_percent(in, s, in.dict(std::move(entries)));
}

Value urlencode(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "urlencode", {});
  if (!p.ok()) return {};
  if (self.is(Kind::dict) || self.is_sequence())
    return in.error("urlencode of a mapping is not implemented", Errc::unsupported);
  std::string text = in.str(self), out;
  if (!in.reserve(text.size() * 3)) return {};
  for (char c : text) {
    auto u = static_cast<unsigned char>(c);
    if ((u < 0x80 && is_alpha(u)) || (c >= '0' && c <= '9') || std::string_view("_.-~/").find(c) != npos) {
      out += c;
    } else {
      out.append("%").append(1, "0123456789ABCDEF"[u >> 4]).append(1, "0123456789ABCDEF"[u & 15]);
    }
  }
  return in.string(std::move(out));
}

// Python's int(text, base): white space around, a sign, single underscores, a prefix.
bool parse_int(std::string_view text, int64_t base, int64_t& out) {
  text = strip_left(strip_right(text));
  bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.size() > 2 && text[0] == '0') {
    char c = static_cast<char>(text[1] | 0x20);
    int64_t named = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
    if (named && (base == named || base == 0)) {
      base = named;
      text.remove_prefix(2);
    }
  }
  if (base == 0) base = 10;
  std::string digits(1, '-');  // parsed as negative, whose range is the larger
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_' && i > 0 && i + 1 < text.size() && text[i - 1] != '_') continue;
    digits += text[i];
  }
  const char* last = digits.data() + digits.size();
  auto [end, ec] = std::from_chars(digits.data(), last, out, static_cast<int>(base));
  if (ec != std::errc() || end != last || (!negative && out == INT64_MIN)) return false;
  if (!negative) out = -out;
  return true;
}

bool parse_real(std::string_view text, double& out) {
  text = strip_left(strip_right(text));
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_' && i > 0 && i + 1 < text.size() && text[i - 1] != '_') continue;
    digits += static_cast<char>(text[i] >= 'A' && text[i] <= 'Z' ? text[i] | 0x20 : text[i]);
  }
  std::string_view t = digits;
  bool negative = t.starts_with('-');
  if (negative || t.starts_with('+')) t.remove_prefix(1);
  if (t.empty() || t[0] == '-' || t[0] == '+' || t.find('(') != npos) return false;
  auto [end, ec] = std::from_chars(t.data(), t.data() + t.size(), out);
  if (end != t.data() + t.size() || ec == std::errc::invalid_argument) return false;
  if (ec == std::errc::result_out_of_range) out = t.find("e-") == npos ? INFINITY : 0.0;
  if (negative) out = -out;
  return true;
}

Value to_int(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "int", {"default", "base"});
  int64_t base = p.ok() ? p.integer(1, 10) : 10;
  if (!p.ok()) return {};
  if (self.is_undefined()) return in.undefined_error(self);
  if (self.is_int()) return Value::integer(self.as_int());
  double d = 0;
  if (self.is(Kind::real)) {
    d = self.as_real();
  } else if (self.is_string()) {
    int64_t i = 0;
    if (base != 0 && (base < 2 || base > 36)) return p.value(0, Value::integer(0));
    if (parse_int(self.text(), base, i)) return Value::integer(i);
    if (!parse_real(self.text(), d)) return p.value(0, Value::integer(0));
  } else {
    return p.value(0, Value::integer(0));
  }
  if (std::isnan(d)) return p.value(0, Value::integer(0));
  if (std::isinf(d)) return p.value(0, Value::integer(0));
  if (d >= 9223372036854775808.0 || d < -9223372036854775808.0) {
    return in.error("integers beyond 64 bits are not implemented", Errc::unsupported);
  }
  return Value::integer(static_cast<int64_t>(d));
}

Value to_float(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "float", {"default"});
  if (!p.ok()) return {};
  if (self.is_undefined()) return in.undefined_error(self);
  if (self.is_number()) return Value::real(self.as_real());
  double d = 0;
  if (self.is_string() && parse_real(self.text(), d)) return Value::real(d);
  return p.value(0, Value::real(0.0));
}

Value absolute(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "abs", {});
  if (!p.ok()) return {};
  if (self.is_undefined()) return in.undefined_error(self);
  if (self.is(Kind::real)) return Value::real(std::fabs(self.as_real()));
  if (!self.is_int()) return in.error("bad operand type for abs(): '" + std::string(type_name(self)) + "'");
  return self.as_int() < 0 ? in.arithmetic(Op::subtract, Value::integer(0), self) : Value::integer(self.as_int());
}

Value round(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "round", {"precision", "method"});
  int64_t precision = p.ok() ? p.integer(0, 0) : 0;
  std::string method = p.text(1, "common");
  if (!p.ok() || in.failed()) return {};
  if (self.is_undefined()) return in.undefined_error(self);
  if (!self.is_number()) return in.error("type " + std::string(type_name(self)) + " doesn't define __round__ method");
  if (method != "common" && method != "ceil" && method != "floor") {
    return in.error("method must be common, ceil or floor");
  }
  double d = self.as_real();
  if (method != "common") {
    double scale = std::pow(10.0, static_cast<double>(std::clamp<int64_t>(precision, -400, 400)));
    double scaled = d * scale;
    return Value::real((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
  }
  if (self.is_int()) {
    if (precision >= 0) return Value::integer(self.as_int());
    return in.error("rounding an integer to tens is not implemented", Errc::unsupported);
  }
  if (!std::isfinite(d) || precision > 22) return self;
  if (precision < 0) {
    double scale = std::pow(10.0, static_cast<double>(std::min<int64_t>(-precision, 400)));
    return Value::real(std::isinf(scale) ? std::copysign(0.0, d) : std::nearbyint(d / scale) * scale);
  }
  // Through decimal digits, correctly rounded, as Python does.
  char buffer[512];
  auto [end, ec] =
      std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::fixed, static_cast<int>(precision));
  double out = d;
  if (ec == std::errc()) std::from_chars(buffer, end, out);
  return Value::real(out);
}

Value default_(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "default", {"default_value", "boolean"});
  if (!p.ok()) return {};
  if (self.is_undefined() || (p.flag(1, false) && !truthy(self))) return p.has(0) ? p[0] : in.string("");
  return self;
}

Value attr(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "attr", {"name"}, 1);
  if (!p.ok()) return {};
  if (self.is_undefined()) return in.undefined_error(self);
  std::string name = p.text(0, "");
  bool attribute = !self.is(Kind::dict) || find_method(self, name);
  if (attribute) return in.attribute(self, name);
  return in.undefined("'" + object_name(self) + "' has no attribute '" + name + "'");
}

constexpr FilterEntry kScalarFilters[] = {
    {"abs", absolute},
    {"attr", attr},
    {"capitalize", map_text<capitalize>},
    {"center", center},
    {"d", default_},
    {"default", default_},
    {"e", escape},
    {"escape", escape},
    {"float", to_float},
    {"forceescape", forceescape},
    {"format", format},
    {"from_json", filter_from_json},
    {"indent", indent},
    {"int", to_int},
    {"lower", map_text<lower>},
    {"replace", replace},
    {"round", round},
    {"safe", safe},
    {"string", string},
    {"title", map_text<title_words>},
    {"tojson", filter_tojson},
    {"trim", trim},
    {"truncate", truncate},
    {"upper", map_text<upper>},
    {"urlencode", urlencode},
    {"wordcount", wordcount},
};

}  // namespace

Value replace_text(Interpreter& in, const Value& self, std::string_view from, std::string_view to, int64_t limit) {
  const std::string& text = self.text();
  std::string out;
  if (!in.reserve(text.size())) return {};
  if (from.empty()) {  // Python puts `to` before every character and at the end
    size_t at = 0;
    while (limit != 0) {
      if (!in.reserve(out.size() + to.size())) return {};
      out += to;
      if (limit > 0) --limit;
      if (at >= text.size()) return in.string(std::move(out), self.markup());
      size_t start = at;
      decode_point(text, at);
      out.append(text, start, at - start);
    }
    out.append(text, at);
    return in.string(std::move(out), self.markup());
  }
  size_t at = 0;
  while (limit != 0) {
    size_t hit = text.find(from, at);
    if (hit == npos) break;
    if (!in.charge(1)) return {};
    if (to.size() > from.size() && out.size() + to.size() > in.memory()->limit) {
      return in.error("the template needs too much memory");
    }
    out.append(text, at, hit - at).append(to);
    at = hit + from.size();
    if (limit > 0) --limit;
  }
  if (at == 0) return self;
  out.append(text, at);
  return in.string(std::move(out), self.markup());
}

bool text_is_case(std::string_view text, bool want_lower) {
  bool any = false;
  for (size_t i = 0; i < text.size();) {
    char32_t c = decode_point(text, i);
    if (is_title(c) || (want_lower ? is_upper(c) : is_lower(c))) return false;
    any |= want_lower ? is_lower(c) : is_upper(c);
  }
  return any;
}

const FilterEntry* find_filter(std::string_view name) {
  for (std::span<const FilterEntry> table : {std::span<const FilterEntry>(kScalarFilters), sequence_filters()}) {
    for (const FilterEntry& entry : table) {
      if (entry.name == name) return &entry;
    }
  }
  return nullptr;
}

std::string why_no_filter(std::string_view name) {
  for (std::string_view known : {"filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"}) {
    if (name == known) return "the filter '" + std::string(name) + "' is not implemented";
  }
  return {};
}

}  // namespace pinion::jinja
