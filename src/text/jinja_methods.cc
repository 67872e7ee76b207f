// Methods of str, list, tuple and dict. Those that change their object are listed without code: the immutable sandbox
// refuses them, and a dot must still find them before a key of the same name.
#include <algorithm>
#include <functional>

#include "text/jinja_filters.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_unicode.h"

namespace pinion::jinja {
namespace {

constexpr auto npos = std::string_view::npos;

Value same(Interpreter& in, const Value& self, std::string text) {
  return in.string(std::move(text), self.markup());
}

bool wants_text(Interpreter& in, const Params& p, size_t i, std::string_view method) {
  if (!p.has(i) || p[i].is_string()) return true;
  if (p[i].is_undefined()) {
    in.undefined_error(p[i]);
  } else {
    in.error(std::string(method) + "() argument must be str, not " + std::string(type_name(p[i])));
  }
  return false;
}

template <std::string (*Map)(std::string_view)>
Value map_text(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "str method", {});
  if (!p.ok() || !in.reserve(self.text().size()) || !in.charge(self.text().size() / 8)) return {};
  return same(in, self, Map(self.text()));
}

template <bool Left, bool Right>
Value strip(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "strip", {"chars"});
  if (!p.ok()) return {};
  std::string_view text = self.text();
  if (!p.has(0) || p[0].is_none()) {
    if (Left) text = strip_left(text);
    if (Right) text = strip_right(text);
  } else {
    if (!wants_text(in, p, 0, "strip") || !in.charge(p[0].text().size() / 64 * (1 + text.size() / 64))) return {};
    if (Left) text = strip_left(text, p[0].text());
    if (Right) text = strip_right(text, p[0].text());
  }
  return text.size() == self.text().size() ? self : same(in, self, std::string(text));
}

bool collect_parts(Interpreter& in, const Value& self, std::vector<Value>& out, std::string_view part) {
  out.push_back(same(in, self, std::string(part)));
  return in.charge(1);
}

Value split_on(Interpreter& in, const Value& self, const std::string& separator, int64_t limit, bool from_right) {
  std::string_view text = self.text();
  std::vector<Value> out;
  while (limit != 0) {
    size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == npos) break;
    std::string_view part = from_right ? text.substr(at + separator.size()) : text.substr(0, at);
    if (!collect_parts(in, self, out, part)) return {};
    text = from_right ? text.substr(0, at) : text.substr(at + separator.size());
    if (limit > 0) --limit;
  }
  collect_parts(in, self, out, text);
  if (from_right) std::reverse(out.begin(), out.end());
  return in.list(std::move(out));
}

Value split_space(Interpreter& in, const Value& self, int64_t limit, bool from_right) {
  std::string_view text = self.text();
  std::vector<Value> out;
  while (true) {
    text = from_right ? strip_right(text) : strip_left(text);
    if (text.empty()) break;
    if (limit == 0) {
      collect_parts(in, self, out, text);
      break;
    }
    if (limit > 0) --limit;
    size_t edge = 0;
    if (from_right) {
      edge = text.size();
      while (edge > 0) {
        size_t start = edge - 1;
        while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
        size_t at = start;
        if (is_space(decode_point(text, at))) break;
        edge = start;
      }
    } else {
      while (edge < text.size()) {
        size_t at = edge;
        if (is_space(decode_point(text, at))) break;
        edge = at;
      }
    }
    if (!collect_parts(in, self, out, from_right ? text.substr(edge) : text.substr(0, edge))) return {};
    text = from_right ? text.substr(0, edge) : text.substr(edge);
  }
  if (from_right) std::reverse(out.begin(), out.end());
  return in.list(std::move(out));
}

template <bool FromRight>
Value split(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "split", {"sep", "maxsplit"});
  int64_t limit = p.ok() ? p.integer(1, -1) : -1;
  if (!p.ok() || !in.reserve(self.text().size())) return {};
  if (!p.has(0) || p[0].is_none()) return split_space(in, self, limit, FromRight);
  if (!wants_text(in, p, 0, "split")) return {};
  if (p[0].text().empty()) return in.error("empty separator");
  return split_on(in, self, p[0].text(), limit, FromRight);
}

Value splitlines(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "splitlines", {"keepends"});
  if (!p.ok() || !in.reserve(self.text().size())) return {};
  bool keep = p.flag(0, false);
  std::string_view text = self.text();
  std::vector<Value> out;
  for (size_t i = 0, start = 0; i < text.size();) {
    size_t before = i;
    char32_t c = decode_point(text, i);
    bool ends = (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (c == '\r' && i < text.size() && text[i] == '\n') ++i;
    if (!ends && i < text.size()) continue;
    if (!collect_parts(in, self, out, text.substr(start, (ends && !keep ? before : i) - start))) return {};
    start = i;
  }
  return in.list(std::move(out));
}

template <bool FromRight>
Value partition(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "partition", {"sep"}, 1);
  if (!p.ok() || !wants_text(in, p, 0, "partition")) return {};
  const std::string &text = self.text(), &sep = p[0].text();
  if (sep.empty()) return in.error("empty separator");
  size_t at = FromRight ? text.rfind(sep) : text.find(sep);
  if (at == npos) {
    return FromRight ? in.tuple({in.string(""), in.string(""), self}) : in.tuple({self, in.string(""), in.string("")});
  }
  return in.tuple(
      {same(in, self, text.substr(0, at)), same(in, self, sep), same(in, self, text.substr(at + sep.size()))});
}

// The byte range of self[start:end] for find, count, startswith…
bool byte_range(Interpreter& in, Params& p, const Value& self, size_t first, std::string_view& part, size_t& offset) {
  auto n = static_cast<int64_t>(self.points());
  auto bound = [&](size_t i, int64_t otherwise) {
    if (!p.has(i) || p[i].is_none()) return otherwise;
    int64_t at = p.integer(i, otherwise);
    return at < 0 ? std::max<int64_t>(0, at + n) : at;
  };
  int64_t start = bound(first, 0), end = std::min(bound(first + 1, n), n);
  if (!p.ok() || !in.charge(1 + self.text().size() / 64)) return false;
  if (start > n || start > end) {
    part = std::string_view();
    offset = npos;
    return true;
  }
  offset = point_offset(self.text(), self.points(), static_cast<size_t>(start));
  part = std::string_view(self.text())
             .substr(offset, point_offset(self.text(), self.points(), static_cast<size_t>(end)) - offset);
  return true;
}

template <bool FromRight, bool Must>
Value find(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "find", {"sub", "start", "end"}, 1);
  std::string_view part;
  size_t offset = 0;
  if (!p.ok() || !wants_text(in, p, 0, "find") || !byte_range(in, p, self, 1, part, offset)) return {};
  size_t at = offset == npos ? npos : FromRight ? part.rfind(p[0].text()) : part.find(p[0].text());
  if (at == npos) return Must ? in.error("substring not found") : Value::integer(-1);
  return Value::integer(static_cast<int64_t>(count_points(std::string_view(self.text()).substr(0, offset + at))));
}

Value count(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "count", {"sub", "start", "end"}, 1);
  std::string_view part;
  size_t offset = 0;
  if (!p.ok() || !wants_text(in, p, 0, "count") || !byte_range(in, p, self, 1, part, offset)) return {};
  const std::string& sub = p[0].text();
  if (offset == npos) return Value::integer(0);
  if (sub.empty()) return Value::integer(static_cast<int64_t>(count_points(part)) + 1);
  int64_t n = 0;
  for (size_t at = part.find(sub); at != npos; at = part.find(sub, at + sub.size())) ++n;
  return Value::integer(n);
}

template <bool Start>
Value affix(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, Start ? "startswith" : "endswith", {"prefix", "start", "end"}, 1);
  std::string_view part;
  size_t offset = 0;
  if (!p.ok() || !byte_range(in, p, self, 1, part, offset)) return {};
  auto matches = [&](const Value& v) {
    if (!v.is_string()) {
      if (v.is_undefined()) {
        in.undefined_error(v);
      } else {
        in.error("startswith first arg must be str or a tuple of str, not " + std::string(type_name(v)));
      }
      return false;
    }
    return offset != npos && (Start ? part.starts_with(v.text()) : part.ends_with(v.text()));
  };
  if (p[0].is(Kind::tuple)) return Value::boolean(std::any_of(p[0].items().begin(), p[0].items().end(), matches));
  return Value::boolean(matches(p[0]));
}

template <bool Prefix>
Value remove_affix(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "removeprefix", {"prefix"}, 1);
  if (!p.ok() || !wants_text(in, p, 0, "removeprefix")) return {};
  const std::string &text = self.text(), &affix = p[0].text();
  if (affix.empty() || !(Prefix ? text.starts_with(affix) : text.ends_with(affix))) return self;
  return same(in, self, Prefix ? text.substr(affix.size()) : text.substr(0, text.size() - affix.size()));
}

Value join(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "join", {"iterable"}, 1);
  if (!p.ok()) return {};
  std::string out;
  bool first = true;
  int64_t index = 0;
  for (const Value& v : in.collect(p[0])) {
    if (!v.is_string()) {
      return in.error("sequence item " + std::to_string(index) + ": expected str instance, " +
                      std::string(type_name(v)) + " found");
    }
    if (!in.reserve(out.size() + self.text().size() + v.text().size())) return {};
    if (!first) out += self.text();
    first = false;
    out += self.markup() && !v.markup() ? escape_html(v.text()) : v.text();
    ++index;
  }
  return same(in, self, std::move(out));
}

Value replace(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "replace", {"old", "new", "count"}, 2);
  int64_t limit = p.ok() ? p.integer(2, -1) : -1;
  if (!p.ok() || !wants_text(in, p, 0, "replace") || !wants_text(in, p, 1, "replace")) return {};
  return replace_text(in, self, p[0].text(), p[1].text(), limit);
}

template <bool (*Test)(char32_t), bool Empty = false>
Value all_points(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "str method", {});
  if (!p.ok() || !in.charge(1 + self.text().size() / 8)) return {};
  for (size_t i = 0; i < self.text().size();) {
    if (!Test(decode_point(self.text(), i))) return Value::boolean(false);
  }
  return Value::boolean(Empty || !self.text().empty());
}

bool is_alnum(char32_t c) {
  return is_alpha(c) || is_numeric(c);
}
bool is_ascii(char32_t c) {
  return c < 0x80;
}

// No character of the other case, and at least one of this.
template <bool Lower>
Value is_case(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "str method", {});
  if (!p.ok() || !in.charge(1 + self.text().size() / 8)) return {};
  return Value::boolean(text_is_case(self.text(), Lower));
}

Value is_title_text(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "istitle", {});
  if (!p.ok() || !in.charge(1 + self.text().size() / 8)) return {};
  bool cased = false, any = false;
  for (size_t i = 0; i < self.text().size();) {
    char32_t c = decode_point(self.text(), i);
    if (is_upper(c) || is_title(c)) {
      if (cased) return Value::boolean(false);
      cased = any = true;
    } else if (is_lower(c)) {
      if (!cased) return Value::boolean(false);
    } else {
      cased = false;
    }
  }
  return Value::boolean(any);
}

enum class Pad { left, right, both, zero };
template <Pad How>
Value pad(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "pad", {"width", "fillchar"}, 1);
  int64_t width = p.ok() ? p.integer(0, 0) : 0;
  if (!p.ok() || !wants_text(in, p, 1, "pad")) return {};
  std::string fill = How == Pad::zero ? "0" : p.text(1, " ");
  if (count_points(fill) != 1) return in.error("The fill character must be exactly one character long");
  auto have = static_cast<int64_t>(self.points());
  if (width <= have) return self;
  auto n = static_cast<size_t>(width - have);
  if (!in.reserve(n) || !in.reserve(n * fill.size() + self.text().size())) return {};
  auto repeat = [&](size_t k) {
    std::string out;
    for (size_t i = 0; i < k; ++i) out += fill;
    return out;
  };
  const std::string& text = self.text();
  if (How == Pad::left) return same(in, self, repeat(n) + text);
  if (How == Pad::right) return same(in, self, text + repeat(n));
  if (How == Pad::zero) {
    bool sign = !text.empty() && (text[0] == '-' || text[0] == '+');
    return same(in, self, text.substr(0, sign) + repeat(n) + text.substr(sign));
  }
  size_t left = n / 2 + (n & static_cast<size_t>(width) & 1);
  return same(in, self, repeat(left) + text + repeat(n - left));
}

Value expandtabs(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "expandtabs", {"tabsize"});
  int64_t size = p.ok() ? p.integer(0, 8) : 8;
  if (!p.ok()) return {};
  std::string out;
  int64_t column = 0;
  for (char c : self.text()) {
    if (c == '\t') {
      int64_t n = size > 0 ? size - column % size : 0;
      if (!in.reserve(static_cast<size_t>(n)) || !in.reserve(out.size() + static_cast<size_t>(n))) return {};
      out.append(static_cast<size_t>(n), ' ');
      column += n;
    } else {
      out += c;
      if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) ++column;
      if (c == '\n' || c == '\r') column = 0;
    }
  }
  return same(in, self, std::move(out));
}

template <View::Part Part>
Value dict_view(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "dict view", {});
  if (!p.ok()) return {};
  return in.make(Kind::view, std::make_shared<View>(self, Part, in.memory()));
}

Value dict_get(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "get", {"key", "default"}, 1);
  if (!p.ok() || !in.check_hashable(p[0])) return {};
  const Value* v = self.as<Dict>().find(p[0]);
  return v ? *v : p.value(1, Value::none());
}

Value copy(Interpreter&, const Value& self, const Args&) {
  return self;
}

Value sequence_count(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "count", {"value"}, 1);
  if (!p.ok()) return {};
  int64_t n = 0;
  for (const Value& v : self.items()) n += in.equals(v, p[0]);
  return Value::integer(n);
}

Value sequence_index(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "index", {"value"}, 1);
  if (!p.ok()) return {};
  for (size_t i = 0; i < self.items().size() && !in.failed(); ++i) {
    if (in.equals(self.items()[i], p[0])) return Value::integer(static_cast<int64_t>(i));
  }
  return in.error("value is not in list");
}

Value refuse(Interpreter& in, const Value&, const Args&) {
  return in.error("this str method is not implemented", Errc::unsupported);
}

constexpr MethodEntry kText[] = {
    {"capitalize", map_text<capitalize>},
    {"casefold", map_text<casefold>},
    {"center", pad<Pad::both>},
    {"count", count},
    {"encode", refuse},
    {"endswith", affix<false>},
    {"expandtabs", expandtabs},
    {"find", find<false, false>},
    {"format", format_braces},
    {"format_map", refuse},
    {"index", find<false, true>},
    {"isalnum", all_points<is_alnum>},
    {"isalpha", all_points<is_alpha>},
    {"isascii", all_points<is_ascii, true>},
    {"isdecimal", all_points<is_decimal>},
    {"isdigit", all_points<is_digit>},
    {"isidentifier", refuse},
    {"islower", is_case<true>},
    {"isnumeric", all_points<is_numeric>},
    {"isprintable", all_points<is_printable, true>},
    {"isspace", all_points<is_space>},
    {"istitle", is_title_text},
    {"isupper", is_case<false>},
    {"join", join},
    {"ljust", pad<Pad::right>},
    {"lower", map_text<lower>},
    {"lstrip", strip<true, false>},
    {"maketrans", refuse},
    {"partition", partition<false>},
    {"removeprefix", remove_affix<true>},
    {"removesuffix", remove_affix<false>},
    {"replace", replace},
    {"rfind", find<true, false>},
    {"rindex", find<true, true>},
    {"rjust", pad<Pad::left>},
    {"rpartition", partition<true>},
    {"rsplit", split<true>},
    {"rstrip", strip<false, true>},
    {"split", split<false>},
    {"splitlines", splitlines},
    {"startswith", affix<true>},
    {"strip", strip<true, true>},
    {"swapcase", map_text<swapcase>},
    {"title", map_text<title>},
    {"translate", refuse},
    {"upper", map_text<upper>},
    {"zfill", pad<Pad::zero>},
};
constexpr MethodEntry kDict[] = {
    {"clear", nullptr},
    {"copy", copy},
    {"fromkeys", refuse},
    {"get", dict_get},
    {"items", dict_view<View::Part::items>},
    {"keys", dict_view<View::Part::keys>},
    {"pop", nullptr},
    {"popitem", nullptr},
    {"setdefault", nullptr},
    {"update", nullptr},
    {"values", dict_view<View::Part::values>},
};
constexpr MethodEntry kList[] = {
    {"append", nullptr}, {"clear", nullptr},        {"copy", copy},      {"count", sequence_count},
    {"extend", nullptr}, {"index", sequence_index}, {"insert", nullptr}, {"pop", nullptr},
    {"remove", nullptr}, {"reverse", nullptr},      {"sort", nullptr},
};
constexpr MethodEntry kTuple[] = {{"count", sequence_count}, {"index", sequence_index}};

}  // namespace

const MethodEntry* find_method(const Value& self, std::string_view name) {
  std::span<const MethodEntry> table;
  switch (self.kind()) {
    case Kind::string:
      table = kText;
      break;
    case Kind::dict:
      table = kDict;
      break;
    case Kind::list:
      table = kList;
      break;
    case Kind::tuple:
      table = kTuple;
      break;
    default:
      return nullptr;
  }
  auto it = std::lower_bound(table.begin(), table.end(), name,
                             [](const MethodEntry& e, std::string_view n) { return e.name < n; });
  return it != table.end() && it->name == name ? &*it : nullptr;
}

}  // namespace pinion::jinja
