// Construction, comparison and printing of template values.
#include "text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "text/jinja_unicode.h"

namespace pinion::jinja {
namespace {

// Below this many entries a scan is faster than the index.
constexpr size_t kScanEntries = 12;

uint64_t add_saturating(uint64_t a, uint64_t b) {
  return a > (uint64_t{1} << 62) - b ? uint64_t{1} << 62 : a + b;
}

void contain(Object& parent, const Value& child) {
  parent.depth = std::max(parent.depth, child.depth() + 1);
  parent.weight = add_saturating(parent.weight, child.weight());
}

int rank(const Value& v) {
  switch (v.kind()) {
    case Kind::undefined:
      return 0;
    case Kind::none:
      return 1;
    case Kind::boolean:
    case Kind::integer:
    case Kind::real:
      return 2;
    case Kind::string:
      return 3;
    case Kind::tuple:
      return 4;
    default:
      return 5;
  }
}

}  // namespace

Value Value::string(std::string text, Memory* memory, bool markup) {
  Value v(Kind::string);
  v.object_ = std::make_shared<Text>(std::move(text), memory);
  v.markup_ = markup;
  return v;
}

const std::string& Value::text() const {
  return as<Text>().text;
}
size_t Value::points() const {
  return as<Text>().points;
}
const std::vector<Value>& Value::items() const {
  return as<Items>().items;
}

Text::Text(std::string t, Memory* memory) : Object(memory, t.size()), text(std::move(t)), points(count_points(text)) {
  weight = 1 + text.size() / 64;
}

Items::Items(std::vector<Value> v, Memory* memory) : Object(memory, v.size() * sizeof(Value)), items(std::move(v)) {
  for (const Value& item : items) contain(*this, item);
}

Generator::Generator(std::vector<Value> v, Memory* memory)
    : Object(memory, v.size() * sizeof(Value)), items(std::move(v)) {
  for (const Value& item : items) contain(*this, item);
}

Dict::Dict(std::vector<Entry> e, Memory* memory)
    : Object(memory, e.size() * (sizeof(Entry) + sizeof(uint32_t))), entries(std::move(e)) {
  for (const auto& [key, value] : entries) {
    contain(*this, key);
    contain(*this, value);
  }
  if (entries.size() <= kScanEntries) return;
  sorted_.resize(entries.size());
  std::iota(sorted_.begin(), sorted_.end(), 0u);
  std::sort(sorted_.begin(), sorted_.end(),
            [&](uint32_t a, uint32_t b) { return key_order(entries[a].first, entries[b].first) < 0; });
}

const Value* Dict::find(const Value& key) const {
  if (key.is_string()) return find(std::string_view(key.text()));
  if (sorted_.empty()) {
    for (const auto& [k, v] : entries) {
      if (key_order(k, key) == 0) return &v;
    }
    return nullptr;
  }
  auto it = std::lower_bound(sorted_.begin(), sorted_.end(), key,
                             [&](uint32_t i, const Value& k) { return key_order(entries[i].first, k) < 0; });
  if (it == sorted_.end() || key_order(entries[*it].first, key) != 0) return nullptr;
  return &entries[*it].second;
}

const Value* Dict::find(std::string_view key) const {
  if (sorted_.empty()) {
    for (const auto& [k, v] : entries) {
      if (k.is_string() && k.text() == key) return &v;
    }
    return nullptr;
  }
  auto it = std::lower_bound(sorted_.begin(), sorted_.end(), key, [&](uint32_t i, std::string_view text) {
    const Value& k = entries[i].first;
    return k.is_string() ? std::string_view(k.text()) < text : rank(k) < 3;
  });
  if (it == sorted_.end() || !entries[*it].first.is_string() || entries[*it].first.text() != key) return nullptr;
  return &entries[*it].second;
}

View::View(Value d, Part p, Memory* memory) : Object(memory, 0), dict(std::move(d)), part(p) {
  contain(*this, dict);
}

Value* Namespace::find(std::string_view name) {
  for (auto& [key, value] : vars) {
    if (key == name) return &value;
  }
  return nullptr;
}

std::vector<Entry> unique_entries(std::vector<Entry> entries) {
  std::vector<uint32_t> order(entries.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return key_order(entries[a].first, entries[b].first) < 0; });
  std::vector<bool> drop(entries.size());
  bool any = false;
  for (size_t i = 0; i < order.size();) {
    size_t end = i + 1;
    while (end < order.size() && key_order(entries[order[i]].first, entries[order[end]].first) == 0) ++end;
    if (end - i > 1) {
      any = true;
      entries[order[i]].second = entries[order[end - 1]].second;
      for (size_t k = i + 1; k < end; ++k) drop[order[k]] = true;
    }
    i = end;
  }
  if (!any) return entries;
  std::vector<Entry> kept;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!drop[i]) kept.push_back(std::move(entries[i]));
  }
  return kept;
}

bool truthy(const Value& v) {
  switch (v.kind()) {
    case Kind::undefined:
    case Kind::none:
      return false;
    case Kind::boolean:
    case Kind::integer:
      return v.as_int() != 0;
    case Kind::real:
      return v.as_real() != 0;
    case Kind::string:
      return !v.text().empty();
    case Kind::list:
    case Kind::tuple:
      return !v.items().empty();
    case Kind::dict:
      return !v.as<Dict>().entries.empty();
    case Kind::view:
      return !v.as<View>().dict.as<Dict>().entries.empty();
    case Kind::range:
      return v.as<Range>().size != 0;
    case Kind::generator:
    case Kind::space:
    case Kind::callable:
      return true;
  }
  return false;
}

int compare_numbers(const Value& a, const Value& b) {
  if (a.is_int() && b.is_int()) return a.as_int() < b.as_int() ? -1 : a.as_int() > b.as_int();
  if (a.is(Kind::real) && b.is(Kind::real)) {
    if (std::isnan(a.as_real()) || std::isnan(b.as_real())) return 2;
    return a.as_real() < b.as_real() ? -1 : a.as_real() > b.as_real();
  }
  if (a.is(Kind::real)) {
    int c = compare_numbers(b, a);
    return c == 2 ? 2 : -c;
  }
  // An integer against a double, exactly: compare with the double's floor, which fits when the double is in range.
  double d = b.as_real();
  if (std::isnan(d)) return 2;
  if (d >= 9223372036854775808.0) return -1;
  if (d < -9223372036854775808.0) return 1;
  double whole = std::floor(d);
  int64_t w = static_cast<int64_t>(whole);
  if (a.as_int() != w) return a.as_int() < w ? -1 : 1;
  return d > whole ? -1 : 0;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return compare_numbers(a, b) == 0;
  if (a.kind() != b.kind()) {
    if (a.is(Kind::callable) && b.is_string()) return a.as<Callable>().equal_text(b.text());
    if (b.is(Kind::callable) && a.is_string()) return b.as<Callable>().equal_text(a.text());
    return false;
  }
  if (a.get() && a.get() == b.get()) return true;
  switch (a.kind()) {
    case Kind::undefined:
    case Kind::none:
      return true;
    case Kind::string:
      return a.text() == b.text();
    case Kind::list:
    case Kind::tuple:
      return std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(), equal);
    case Kind::dict: {
      const Dict& x = a.as<Dict>();
      const Dict& y = b.as<Dict>();
      if (x.entries.size() != y.entries.size()) return false;
      for (const auto& [key, value] : x.entries) {
        const Value* other = y.find(key);
        if (!other || !equal(value, *other)) return false;
      }
      return true;
    }
    case Kind::range: {
      const Range& x = a.as<Range>();
      const Range& y = b.as<Range>();
      return x.size == y.size && (x.size == 0 || (x.start == y.start && (x.size == 1 || x.step == y.step)));
    }
    default:
      return false;
  }
}

int key_order(const Value& a, const Value& b) {
  int ra = rank(a), rb = rank(b);
  if (ra != rb) return ra < rb ? -1 : 1;
  switch (ra) {
    case 2: {
      int c = compare_numbers(a, b);
      if (c != 2) return c;
      return static_cast<int>(std::isnan(a.as_real())) - static_cast<int>(std::isnan(b.as_real()));
    }
    case 3: {
      int c = a.text().compare(b.text());
      return c < 0 ? -1 : c > 0;
    }
    case 4: {
      const auto& x = a.items();
      const auto& y = b.items();
      for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
        if (int c = key_order(x[i], y[i])) return c;
      }
      return x.size() < y.size() ? -1 : x.size() > y.size();
    }
    case 5:
      return a.get() < b.get() ? -1 : a.get() > b.get();
    default:
      return 0;
  }
}

bool hashable(const Value& v) {
  if (v.is(Kind::list) || v.is(Kind::dict)) return false;
  if (v.is(Kind::tuple)) return std::all_of(v.items().begin(), v.items().end(), hashable);
  return true;
}

std::string real_repr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[64];
  auto [end, ec] = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific);
  (void)ec;
  std::string_view text(buffer, static_cast<size_t>(end - buffer));
  std::string out;
  if (text.front() == '-') {
    out += '-';
    text.remove_prefix(1);
  }
  size_t e = text.find('e');
  std::string digits(1, text[0]);
  if (e > 2) digits += text.substr(2, e - 2);
  int exponent = std::stoi(std::string(text.substr(e + 1)));
  int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (count > 1) out.append(".").append(digits, 1);
    out += exponent < 0 ? "e-" : "e+";
    int magnitude = std::abs(exponent);
    if (magnitude < 10) out += '0';
    return out + std::to_string(magnitude);
  }
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1) return out + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  return out + digits.substr(0, static_cast<size_t>(exponent + 1)) + "." +
         digits.substr(static_cast<size_t>(exponent + 1));
}

void append_repr(std::string& out, const Value& v) {
  switch (v.kind()) {
    case Kind::string:
      if (v.markup()) out += "Markup(";
      append_quoted(out, v.text());
      if (v.markup()) out += ')';
      return;
    case Kind::undefined:
      out += "Undefined";
      return;
    case Kind::list:
    case Kind::tuple: {
      bool list = v.is(Kind::list);
      out += list ? '[' : '(';
      for (size_t i = 0; i < v.items().size(); ++i) {
        if (i) out += ", ";
        append_repr(out, v.items()[i]);
      }
      if (!list && v.items().size() == 1) out += ',';
      out += list ? ']' : ')';
      return;
    }
    case Kind::dict: {
      out += '{';
      bool first = true;
      for (const auto& [key, value] : v.as<Dict>().entries) {
        if (!first) out += ", ";
        first = false;
        append_repr(out, key);
        out += ": ";
        append_repr(out, value);
      }
      out += '}';
      return;
    }
    case Kind::view: {
      const View& view = v.as<View>();
      out.append(type_name(v)).append("([");
      bool first = true;
      for (const auto& [key, value] : view.dict.as<Dict>().entries) {
        if (!first) out += ", ";
        first = false;
        if (view.part == View::Part::items) out += '(';
        if (view.part != View::Part::values) append_repr(out, key);
        if (view.part == View::Part::items) out += ", ";
        if (view.part != View::Part::keys) append_repr(out, value);
        if (view.part == View::Part::items) out += ')';
      }
      out += "])";
      return;
    }
    case Kind::range: {
      const Range& r = v.as<Range>();
      out.append("range(").append(std::to_string(r.start)).append(", ").append(std::to_string(r.at(r.size)));
      if (r.step != 1) out.append(", ").append(std::to_string(r.step));
      out += ')';
      return;
    }
    case Kind::generator:
      out += "<generator object>";
      return;
    case Kind::space:
      out += "<Namespace>";
      return;
    case Kind::callable:
      out += v.as<Callable>().repr();
      return;
    default:
      append_str(out, v);
  }
}

void append_str(std::string& out, const Value& v) {
  switch (v.kind()) {
    case Kind::undefined:
      return;
    case Kind::none:
      out += "None";
      return;
    case Kind::boolean:
      out += v.as_bool() ? "True" : "False";
      return;
    case Kind::integer:
      out += std::to_string(v.as_int());
      return;
    case Kind::real:
      out += real_repr(v.as_real());
      return;
    case Kind::string:
      out += v.text();
      return;
    default:
      append_repr(out, v);
  }
}

std::string_view type_name(const Value& v) {
  switch (v.kind()) {
    case Kind::undefined:
      return "Undefined";
    case Kind::none:
      return "NoneType";
    case Kind::boolean:
      return "bool";
    case Kind::integer:
      return "int";
    case Kind::real:
      return "float";
    case Kind::string:
      return v.markup() ? "Markup" : "str";
    case Kind::list:
      return "list";
    case Kind::tuple:
      return "tuple";
    case Kind::dict:
      return "dict";
    case Kind::view:
      switch (v.as<View>().part) {
        case View::Part::keys:
          return "dict_keys";
        case View::Part::values:
          return "dict_values";
        case View::Part::items:
          return "dict_items";
      }
      return "dict_items";
    case Kind::range:
      return "range";
    case Kind::generator:
      return "generator";
    case Kind::space:
      return "Namespace";
    case Kind::callable:
      return v.as<Callable>().type_name();
  }
  return "object";
}

std::string object_name(const Value& v) {
  if (v.is_none()) return "None";
  return std::string(type_name(v)) + " object";
}

}  // namespace pinion::jinja
