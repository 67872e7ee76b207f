// Python's %-formatting and str.format, with the conversions templates use; others are refused by name.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/jinja_filters.h"
#include "text/jinja_unicode.h"

namespace pinion::jinja {
namespace {

// One field: [[fill]align][sign][#][0][width][,][.precision][type].
struct Spec {
  std::string fill = " ";
  char align = 0, sign = '-', type = 0;
  bool alternate = false, zero = false, commas = false;
  int64_t width = 0, precision = -1;
};

std::string group_thousands(std::string digits) {
  size_t end = std::min(digits.find_first_not_of("0123456789"), digits.size());
  for (size_t i = end; i > 3; i -= 3) digits.insert(i - 3, 1, ',');
  return digits;
}

std::string format_real(double d, const Spec& s) {
  char type = static_cast<char>(s.type | 0x20);
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return "inf";
  std::chars_format how = type == 'e'   ? std::chars_format::scientific
                          : type == 'g' ? std::chars_format::general
                                        : std::chars_format::fixed;
  int precision = s.precision < 0 ? 6 : static_cast<int>(s.precision);
  std::string buffer(static_cast<size_t>(precision) + 340, 0);
  auto [end, ec] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), d, how,
                                 type == 'g' ? std::max(1, precision) : precision);
  buffer.resize(ec == std::errc() ? static_cast<size_t>(end - buffer.data()) : 0);
  return buffer;
}

class Formatter {
 public:
  explicit Formatter(Interpreter& in) : in_(in) {}

  // Appends `body` (a number with its sign apart, or text) in its width.
  bool pad(std::string& out, const std::string& sign, const std::string& body, const Spec& s, char align) {
    auto have = static_cast<int64_t>(count_points(body) + sign.size());
    size_t fill = s.width > have ? static_cast<size_t>(s.width - have) : 0;
    if (!in_.reserve(fill) || !in_.reserve(out.size() + body.size() + fill * s.fill.size())) return false;
    auto repeat = [&](size_t n) {
      for (size_t i = 0; i < n; ++i) out += s.fill;
    };
    if (align == '=') out += sign;
    if (align == '>' || align == '=') repeat(fill);
    if (align == '^') repeat(fill / 2);
    if (align != '=') out += sign;
    out += body;
    if (align == '<') repeat(fill);
    if (align == '^') repeat(fill - fill / 2);
    return true;
  }

  bool number(std::string& out, const Value& v, Spec s) {
    bool negative = false;
    std::string body;
    char type = s.type ? s.type : v.is(Kind::real) ? 'r' : 'd';
    if (s.precision > 400) return fail("a precision of more than 400 is not implemented");
    if (type == 'd' || type == 'n' || type == 'x' || type == 'X' || type == 'o' || type == 'b') {
      if (!v.is_int()) return fail("Unknown format code '" + std::string(1, type) + "' for object of type 'float'");
      negative = v.as_int() < 0;
      uint64_t magnitude = negative ? 0 - static_cast<uint64_t>(v.as_int()) : static_cast<uint64_t>(v.as_int());
      char buffer[72];
      int base = type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
      auto [end, ec] = std::to_chars(buffer, buffer + sizeof buffer, magnitude, base);
      (void)ec;
      body.assign(buffer, end);
      if (static_cast<int64_t>(body.size()) < s.precision)
        body.insert(0, static_cast<size_t>(s.precision) - body.size(), '0');
      if (s.alternate && base != 10) body.insert(0, base == 16 ? "0x" : base == 8 ? "0o" : "0b");
    } else if (type == 'r') {
      double d = v.as_real();
      negative = std::signbit(d);
      if (s.precision < 0) {
        body = real_repr(std::fabs(d));
      } else {
        s.type = 'g';
        body = format_real(std::fabs(d), s);
        if (body.find_first_not_of("0123456789") == std::string::npos) body += ".0";
      }
    } else {
      double d = v.as_real();
      negative = std::signbit(d) && !std::isnan(d);
      if (type == '%') {
        d *= 100;
        s.type = 'f';
      }
      body = format_real(std::fabs(d), s);
      if (type == '%') body += '%';
    }
    if (type >= 'A' && type <= 'Z') body = upper(body);
    if (s.commas) body = group_thousands(std::move(body));
    std::string sign = negative ? "-" : s.sign == '+' ? "+" : s.sign == ' ' ? " " : "";
    return pad(out, sign, body, s, s.align ? s.align : s.zero ? '=' : '>');
  }

  bool text(std::string& out, std::string body, const Spec& s, char align) {
    if (s.precision >= 0) body.resize(point_offset(body, count_points(body), static_cast<size_t>(s.precision)));
    return pad(out, "", body, s, align);
  }

  bool fail(const std::string& why) {
    in_.error(why);
    return false;
  }

  Interpreter& in_;
};

bool read_digits(std::string_view text, size_t& at, int64_t& out) {
  size_t start = at;
  out = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    if (out > 1'000'000'000) return false;
    out = out * 10 + (text[at++] - '0');
  }
  return at > start;
}

}  // namespace

Value format_percent(Interpreter& in, const Value& format, const Value& values) {
  Formatter f(in);
  std::string out;
  std::string_view text = format.text();
  bool tuple = values.is(Kind::tuple), used_mapping = false;
  size_t next = 0;
  auto argument = [&]() -> std::optional<Value> {
    if (tuple ? next < values.items().size() : next == 0) {
      size_t i = next++;
      return tuple ? values.items()[i] : values;
    }
    in.error("not enough arguments for format string");
    return std::nullopt;
  };
  for (size_t i = 0; i < text.size();) {
    size_t percent = std::min(text.find('%', i), text.size());
    if (!in.reserve(out.size() + percent - i)) return {};
    out += text.substr(i, percent - i);
    i = percent + 1;
    if (percent == text.size()) break;
    std::optional<Value> v;
    if (i < text.size() && text[i] == '(') {
      size_t close = text.find(')', i);
      if (close == std::string_view::npos) return in.error("incomplete format key");
      if (!values.is(Kind::dict)) return in.error("format requires a mapping");
      std::string key(text.substr(i + 1, close - i - 1));
      const Value* found = values.as<Dict>().find(std::string_view(key));
      if (!found) return in.error("KeyError: '" + key + "'");
      v = *found;
      used_mapping = true;
      i = close + 1;
    }
    Spec s;
    bool left = false;
    for (; i < text.size() && std::string_view("-+ #0").find(text[i]) != std::string_view::npos; ++i) {
      if (text[i] == '-') left = true;
      if (text[i] == '+') s.sign = '+';
      if (text[i] == ' ' && s.sign != '+') s.sign = ' ';
      if (text[i] == '#') s.alternate = true;
      if (text[i] == '0') s.zero = true;
    }
    auto size = [&](int64_t& n) {
      if (i < text.size() && text[i] == '*') {
        ++i;
        auto a = argument();
        if (!a) return false;
        if (!a->is_int()) return f.fail("* wants int");
        n = a->as_int();
        return true;
      }
      size_t start = i;
      return read_digits(text, i, n) || i == start || f.fail("a format's width is too large");
    };
    if (!size(s.width)) return {};
    if (s.width < 0) {
      left = true;
      s.width = s.width == INT64_MIN ? INT64_MAX : -s.width;
    }
    if (i < text.size() && text[i] == '.') {
      ++i;
      s.precision = 0;
      if (!size(s.precision)) return {};
      s.precision = std::max<int64_t>(s.precision, 0);
    }
    if (i >= text.size()) return in.error("incomplete format");
    char c = text[i++];
    if (c == '%') {
      out += '%';
      continue;
    }
    if (!v && !(v = argument())) return {};
    if (c == 's' || c == 'r' || c == 'a') {
      std::string body = c == 's' ? in.str(*v) : in.repr(*v);
      if (in.failed()) return {};
      if (format.markup() && !v->markup()) body = escape_html(body);
      if (!f.text(out, std::move(body), s, left ? '<' : '>')) return {};
      continue;
    }
    if (c == 'c') {
      std::string body = v->is_string() ? v->text() : "";
      if (v->is_int() && v->as_int() >= 0 && v->as_int() < 0xD800)
        append_point(body, static_cast<char32_t>(v->as_int()));
      if (count_points(body) != 1) return in.error("%c requires int or char");
      if (!f.text(out, std::move(body), s, left ? '<' : '>')) return {};
      continue;
    }
    if (std::string_view("diuoxXeEfFgG").find(c) == std::string_view::npos) {
      return in.error("unsupported format character '" + std::string(1, c) + "'");
    }
    if (v->is_undefined()) return in.undefined_error(*v);
    if (!v->is_number()) {
      return in.error("%" + std::string(1, c) + " format: a real number is required, not " +
                      std::string(type_name(*v)));
    }
    bool whole = c == 'd' || c == 'i' || c == 'u';
    if (whole && v->is(Kind::real)) {
      if (!(std::fabs(v->as_real()) < 9e18))
        return in.error("integers beyond 64 bits are not implemented", Errc::unsupported);
      v = Value::integer(static_cast<int64_t>(v->as_real()));
    }
    s.type = whole ? 'd' : c;
    s.align = left ? '<' : 0;
    if (!left && s.zero) s.fill = "0";
    if (!f.number(out, *v, s)) return {};
  }
  bool all_used = tuple ? next >= values.items().size()
                        : next > 0 || used_mapping || values.is(Kind::dict) || values.is(Kind::list);
  if (!all_used) return in.error("not all arguments converted during string formatting");
  return in.string(std::move(out), format.markup());
}

namespace {

bool parse_spec(Interpreter& in, std::string_view text, Spec& s) {
  size_t at = 0, first = 0;
  if (!text.empty()) decode_point(text, first);
  auto aligns = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  if (first > 0 && first < text.size() && aligns(text[first])) {
    s.fill = text.substr(0, first);
    s.align = text[first];
    at = first + 1;
  } else if (!text.empty() && aligns(text[0])) {
    s.align = text[0];
    at = 1;
  }
  auto skip = [&](char c) { return at < text.size() && text[at] == c ? (++at, true) : false; };
  for (char c : {'+', '-', ' '}) {
    if (skip(c)) s.sign = c;
  }
  s.alternate = skip('#');
  if (skip('0')) {
    if (!s.align) s.fill = "0";
    s.zero = true;
  }
  bool ok = read_digits(text, at, s.width) || at >= text.size() || text[at] < '0' || text[at] > '9';
  s.commas = skip(',');
  if (skip('.')) ok = ok && read_digits(text, at, s.precision);
  if (at < text.size()) s.type = text[at++];
  if (ok && at == text.size()) return true;
  in.error("Invalid format specifier '" + std::string(text) + "'");
  return false;
}

// The value of "name.attr[item]" or of an automatic or explicit position.
std::optional<Value> field_value(Interpreter& in, std::string_view field, const Args& args, int64_t& automatic) {
  size_t end = std::min(field.find_first_of(".["), field.size());
  std::string_view name = field.substr(0, end);
  Value v;
  size_t at = 0;
  int64_t index = 0;
  if (name.empty()) {
    index = automatic++;
  } else if (!read_digits(name, at, index) || at != name.size()) {
    index = -1;
    auto it = std::find_if(args.named.begin(), args.named.end(), [&](const auto& n) { return n.first == name; });
    if (it == args.named.end()) return in.error("KeyError: '" + std::string(name) + "'"), std::nullopt;
    v = it->second;
  }
  if (index >= 0) {
    if (static_cast<size_t>(index) >= args.positional.size()) {
      return in.error("Replacement index " + std::to_string(index) + " out of range for positional args tuple"),
             std::nullopt;
    }
    v = args.positional[static_cast<size_t>(index)];
  }
  while (end < field.size() && !in.failed()) {
    bool brackets = field[end] == '[';
    size_t stop = brackets ? field.find(']', end) : std::min(field.find_first_of(".[", end + 1), field.size());
    if (stop == std::string_view::npos) return in.error("Missing ']' in format string"), std::nullopt;
    std::string_view part = field.substr(end + 1, stop - end - 1);
    size_t digits = 0;
    if (brackets && read_digits(part, digits, index) && digits == part.size()) {
      v = in.item(v, Value::integer(index));
    } else {
      v = brackets ? in.item(v, in.string(std::string(part))) : in.attribute(v, part);
    }
    end = brackets ? stop + 1 : stop;
  }
  return v;
}

}  // namespace

Value format_braces(Interpreter& in, const Value& format, const Args& args) {
  Formatter f(in);
  std::string out;
  std::string_view text = format.text();
  int64_t automatic = 0;
  for (size_t i = 0; i < text.size();) {
    char c = text[i];
    if (c != '{' && c != '}') {
      size_t end = std::min(text.find_first_of("{}", i), text.size());
      if (!in.reserve(out.size() + end - i)) return {};
      out += text.substr(i, end - i);
      i = end;
      continue;
    }
    if (i + 1 < text.size() && text[i + 1] == c) {
      out += c;
      i += 2;
      continue;
    }
    if (c == '}') return in.error("Single '}' encountered in format string");
    size_t close = text.find('}', i);
    if (close == std::string_view::npos) return in.error("expected '}' before end of string");
    std::string_view field = text.substr(i + 1, close - i - 1);
    if (field.find('{') != std::string_view::npos) {
      return in.error("nested replacement fields are not implemented", Errc::unsupported);
    }
    i = close + 1;
    size_t colon = std::min(field.find(':'), field.size());
    std::string_view name = field.substr(0, colon), spec_text = colon < field.size() ? field.substr(colon + 1) : "";
    char conversion = 0;
    if (size_t bang = name.find('!'); bang != std::string_view::npos) {
      if (bang + 2 != name.size() || (name.back() != 'r' && name.back() != 's')) {
        return in.error("Unknown conversion specifier " + std::string(name.substr(bang)));
      }
      conversion = name.back();
      name = name.substr(0, bang);
    }
    auto v = field_value(in, name, args, automatic);
    if (!v || in.failed()) return {};
    Spec s;
    if (!parse_spec(in, spec_text, s)) return {};
    bool done = false;
    if (v->is_number() && !conversion && (!v->is(Kind::boolean) || s.type)) {
      if (s.type && std::string_view("dnxXobeEfFgG%").find(s.type) == std::string_view::npos) {
        return in.error("Unknown format code '" + std::string(1, s.type) + "' for object of type '" +
                        std::string(type_name(*v)) + "'");
      }
      done = f.number(out, *v, s);
    } else {
      if (s.type && s.type != 's') {
        return in.error("Unknown format code '" + std::string(1, s.type) + "' for object of type '" +
                        std::string(type_name(*v)) + "'");
      }
      if (!v->is_string() && !conversion && !spec_text.empty()) {
        return in.error("unsupported format string passed to " + std::string(type_name(*v)) + ".__format__");
      }
      std::string body = conversion == 'r' ? in.repr(*v) : in.str(*v);
      if (in.failed()) return {};
      if (format.markup() && !v->markup()) body = escape_html(body);
      done = f.text(out, std::move(body), s, s.align ? s.align : '<');
    }
    if (!done) return {};
  }
  return in.string(std::move(out), format.markup());
}

}  // namespace pinion::jinja
