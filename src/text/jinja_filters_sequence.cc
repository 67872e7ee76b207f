// Filters on sequences and mappings. Those that Jinja makes lazy return generators here too: true, without a length,
// read once.
#include <algorithm>
#include <charconv>

#include "text/jinja_filters.h"
#include "text/jinja_unicode.h"

namespace pinion::jinja {
namespace {

// "a.b.0" on an item: brackets' lookup for each part.
Value dotted(Interpreter& in, Value v, const Value& path) {
  if (path.is_int()) return in.item(v, path);
  if (!path.is_string()) return in.error("an attribute name must be a string");
  std::string_view rest = path.text();
  while (!in.failed()) {
    size_t dot = rest.find('.');
    std::string_view part = rest.substr(0, dot);
    int64_t index = 0;
    auto [end, ec] = std::from_chars(part.data(), part.data() + part.size(), index);
    bool number = ec == std::errc() && end == part.data() + part.size() && part[0] != '-';
    v = in.item(v, number ? Value::integer(index) : in.string(std::string(part)));
    if (dot == std::string_view::npos) break;
    rest.remove_prefix(dot + 1);
  }
  return v;
}

Value folded(const Value& v, bool fold) {
  return fold && v.is_string() ? Value::string(lower(v.text())) : v;
}

Value key_of(Interpreter& in, const Value& item, const Value* path, bool fold, const Value* fallback = nullptr) {
  Value v = path ? dotted(in, item, *path) : item;
  if (fallback && v.is_undefined()) v = *fallback;
  if (fold && v.is_string() && !in.reserve(v.text().size())) return {};
  return folded(v, fold);
}

const Value* given(const Params& p, size_t i) {
  return p.has(i) && !p[i].is_none() ? &p[i] : nullptr;
}

// A stable sort by keys in Python's order; stops comparing after an error.
void sort_by(Interpreter& in, std::vector<Value>& items, const std::vector<Value>& keys, bool reverse) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  // Merge sort by hand: an inconsistent order (NaN, or an error midway) must not upset it.
  std::vector<size_t> other(order.size());
  for (size_t width = 1; width < order.size() && !in.failed(); width *= 2) {
    for (size_t low = 0; low < order.size(); low += 2 * width) {
      size_t mid = std::min(low + width, order.size()), high = std::min(low + 2 * width, order.size());
      for (size_t i = low, j = mid, k = low; k < high; ++k) {
        bool right = i >= mid;
        if (!right && j < high && in.charge(1)) {
          int c = in.order(reverse ? keys[order[i]] : keys[order[j]], reverse ? keys[order[j]] : keys[order[i]]);
          right = c == -1;
        }
        other[k] = right ? order[j++] : order[i++];
      }
    }
    order.swap(other);
  }
  std::vector<Value> sorted;
  sorted.reserve(items.size());
  for (size_t i : order) sorted.push_back(items[i]);
  items = std::move(sorted);
}

Value length(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "length", {});
  if (!p.ok()) return {};
  auto n = in.length(self);
  if (!n) return in.error("object of type '" + std::string(type_name(self)) + "' has no len()");
  return Value::integer(static_cast<int64_t>(*n));
}

Value list(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "list", {});
  std::vector<Value> items = p.ok() ? in.collect(self) : std::vector<Value>();
  return in.failed() ? Value() : in.list(std::move(items));
}

Value first(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "first", {});
  Cursor cursor = in.iterate(self);
  Value v;
  if (!p.ok() || in.failed()) return {};
  return cursor.next(in, v) ? v : in.undefined("No first item, sequence was empty.");
}

Value last(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "last", {});
  if (!p.ok()) return {};
  if (self.is(Kind::generator)) return in.error("'generator' object is not reversible");
  std::vector<Value> items = in.collect(self);
  if (in.failed()) return {};
  return items.empty() ? in.undefined("No last item, sequence was empty.") : items.back();
}

Value join(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "join", {"d", "attribute"});
  if (!p.ok()) return {};
  std::string separator = p.text(0, ""), out;
  const Value* path = given(p, 1);
  bool any = false;
  Cursor cursor = in.iterate(self);
  Value v;
  while (!in.failed() && cursor.next(in, v)) {
    if (path) v = dotted(in, v, *path);
    if (in.failed()) return {};
    std::string text = v.is_string() ? std::string() : in.str(v);
    const std::string& part = v.is_string() ? v.text() : text;
    if (out.size() + separator.size() + part.size() > in.memory()->limit || !in.charge(1 + part.size() / 64)) {
      return in.error("the template needs too much memory");
    }
    if (any) out += separator;
    out += part;
    any = true;
  }
  return in.failed() ? Value() : in.string(std::move(out));
}

Value items(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "items", {});
  if (!p.ok()) return {};
  if (self.is_undefined()) return in.generator({});
  if (!self.is(Kind::dict)) return in.error("Can only get item pairs from a mapping.");
  return in.generator(
      in.collect(Value::object(Kind::view, std::make_shared<View>(self, View::Part::items, in.memory()))));
}

Value dictsort(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "dictsort", {"case_sensitive", "by", "reverse"});
  if (!p.ok()) return {};
  std::string by = p.text(1, "key");
  if (by != "key" && by != "value") return in.error("You can only sort by either \"key\" or \"value\"");
  if (self.is_undefined()) return in.undefined_error(self);
  if (!self.is(Kind::dict)) return in.error("'" + object_name(self) + "' has no attribute 'items'");
  std::vector<Value> pairs, keys;
  for (const auto& [key, value] : self.as<Dict>().entries) {
    pairs.push_back(in.tuple({key, value}));
    keys.push_back(key_of(in, by == "key" ? key : value, nullptr, !p.flag(0, false)));
    if (in.failed()) return {};
  }
  sort_by(in, pairs, keys, p.flag(2, false));
  return in.list(std::move(pairs));
}

Value sort(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "sort", {"reverse", "case_sensitive", "attribute"});
  if (!p.ok()) return {};
  std::vector<Value> out = in.collect(self);
  const Value* path = given(p, 2);
  bool fold = !p.flag(1, false);
  // Several attributes, comma separated, sort as a tuple.
  std::vector<Value> paths;
  if (path && path->is_string()) {
    std::string_view rest = path->text();
    for (size_t comma; (comma = rest.find(',')) != std::string_view::npos; rest.remove_prefix(comma + 1)) {
      paths.push_back(in.string(std::string(rest.substr(0, comma))));
    }
    if (!paths.empty()) paths.push_back(in.string(std::string(rest)));
  }
  std::vector<Value> keys;
  for (const Value& v : out) {
    if (in.failed()) return {};
    if (paths.empty()) {
      keys.push_back(key_of(in, v, path, fold));
      continue;
    }
    std::vector<Value> parts;
    for (const Value& part : paths) parts.push_back(key_of(in, v, &part, fold));
    keys.push_back(in.list(std::move(parts)));
  }
  if (in.failed()) return {};
  sort_by(in, out, keys, p.flag(0, false));
  return in.list(std::move(out));
}

Value unique(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "unique", {"case_sensitive", "attribute"});
  if (!p.ok()) return {};
  std::vector<Value> out;
  std::vector<Entry> keyed;
  for (const Value& v : in.collect(self)) {
    Value key = key_of(in, v, given(p, 1), !p.flag(0, false));
    if (in.failed() || !in.check_hashable(key)) return {};
    keyed.emplace_back(std::move(key), Value::integer(static_cast<int64_t>(keyed.size())));
    out.push_back(v);
  }
  if (in.failed()) return {};
  // unique_entries keeps the first place but the last value; places are found again by walking in step.
  std::vector<Entry> kept = unique_entries(keyed);
  std::vector<Value> result;
  for (size_t i = 0, k = 0; i < keyed.size() && k < kept.size(); ++i) {
    if (key_order(keyed[i].first, kept[k].first) != 0) continue;
    result.push_back(out[i]);
    ++k;
  }
  return in.generator(std::move(result));
}

template <int Sign>
Value extreme(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, Sign < 0 ? "min" : "max", {"case_sensitive", "attribute"});
  if (!p.ok()) return {};
  std::vector<Value> all = in.collect(self);
  if (in.failed()) return {};
  if (all.empty()) return in.undefined("No aggregated item, sequence was empty.");
  Value best = all[0], best_key = key_of(in, all[0], given(p, 1), !p.flag(0, false));
  for (size_t i = 1; i < all.size() && !in.failed(); ++i) {
    Value key = key_of(in, all[i], given(p, 1), !p.flag(0, false));
    if (in.failed()) return {};
    int c = in.order(key, best_key);
    if (c != Sign) continue;
    best = all[i];
    best_key = std::move(key);
  }
  return best;
}

Value sum(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "sum", {"attribute", "start"});
  if (!p.ok()) return {};
  Value total = p.value(1, Value::integer(0));
  if (total.is_string()) return in.error("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& v : in.collect(self)) {
    Value part = given(p, 0) ? dotted(in, v, p[0]) : v;
    if (in.failed() || !in.charge(1)) return {};
    total = in.arithmetic(Op::add, total, part);
  }
  return total;
}

Value reverse(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "reverse", {});
  if (!p.ok()) return {};
  if (self.is_string()) return in.slice(self, Value::none(), Value::none(), Value::integer(-1));
  std::vector<Value> out = in.collect(self);
  if (in.failed()) return {};
  std::reverse(out.begin(), out.end());
  return in.generator(std::move(out));
}

Value batch(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "batch", {"linecount", "fill_with"}, 1);
  int64_t size = p.ok() ? p.integer(0, 1) : 1;
  if (!p.ok()) return {};
  std::vector<Value> rows, row;
  for (const Value& v : in.collect(self)) {
    if (static_cast<int64_t>(row.size()) == size) rows.push_back(in.list(std::exchange(row, {})));
    row.push_back(v);
  }
  if (!row.empty()) {
    if (given(p, 1) && static_cast<int64_t>(row.size()) < size) {
      auto missing = static_cast<uint64_t>(size) - row.size();
      if (missing > in.memory()->limit / sizeof(Value) || !in.reserve(missing * sizeof(Value))) {
        return in.error("the template needs too much memory");
      }
      row.resize(static_cast<size_t>(size), p[1]);
    }
    rows.push_back(in.list(std::move(row)));
  }
  return in.failed() ? Value() : in.generator(std::move(rows));
}

Value slice(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "slice", {"slices", "fill_with"}, 1);
  int64_t slices = p.ok() ? p.integer(0, 1) : 1;
  if (!p.ok()) return {};
  std::vector<Value> all = in.collect(self);
  if (slices == 0) return in.error("integer division or modulo by zero");
  if (slices < 0) return in.generator({});
  if (in.failed() || static_cast<uint64_t>(slices) > in.memory()->limit / 100 ||
      !in.reserve(static_cast<size_t>(slices) * 100)) {
    return in.error("the template needs too much memory");
  }
  auto n = static_cast<int64_t>(all.size()), each = n / slices, extra = n % slices;
  std::vector<Value> out;
  int64_t at = 0;
  for (int64_t i = 0; i < slices && !in.failed(); ++i) {
    int64_t end = at + each + (i < extra);
    std::vector<Value> part(all.begin() + at, all.begin() + end);
    if (given(p, 1) && i >= extra) part.push_back(p[1]);
    out.push_back(in.list(std::move(part)));
    at = end;
  }
  return in.failed() ? Value() : in.generator(std::move(out));
}

Value groupby(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "groupby", {"attribute", "default", "case_sensitive"}, 1);
  if (!p.ok()) return {};
  bool fold = !p.flag(2, false);
  std::vector<Value> all = in.collect(self), keys;
  for (const Value& v : all) keys.push_back(key_of(in, v, &p[0], fold, given(p, 1)));
  if (in.failed()) return {};
  sort_by(in, all, keys, false);
  std::vector<Value> groups, members;
  Value now, shown;
  auto flush = [&] {
    if (members.empty()) return;
    auto pair = std::make_shared<Items>(std::vector<Value>{shown, in.list(std::exchange(members, {}))}, in.memory());
    pair->group = true;
    groups.push_back(in.make(Kind::tuple, std::move(pair)));
  };
  for (const Value& v : all) {
    Value key = key_of(in, v, &p[0], fold, given(p, 1));
    if (in.failed()) return {};
    if (!members.empty() && !in.equals(key, now)) flush();
    if (members.empty()) {
      now = key;
      shown = key_of(in, v, &p[0], false, given(p, 1));
    }
    members.push_back(v);
  }
  flush();
  return in.failed() ? Value() : in.list(std::move(groups));
}

Value map(Interpreter& in, const Value& self, const Args& args) {
  std::vector<Value> out;
  if (args.positional.empty() && !args.named.empty()) {
    Params p(in, args, "map", {"attribute", "default"}, 1);
    if (!p.ok()) return {};
    for (const Value& v : in.collect(self)) {
      if (in.failed()) return {};
      out.push_back(key_of(in, v, &p[0], false, given(p, 1)));
    }
    return in.failed() ? Value() : in.generator(std::move(out));
  }
  if (args.positional.empty()) return in.error("map requires a filter argument");
  if (!args.positional[0].is_string()) return in.error("map's first argument names a filter");
  const std::string& name = args.positional[0].text();
  const FilterEntry* filter = find_filter(name);
  if (!filter) return in.error("No filter named '" + name + "'.");
  // A filter that runs filters would recurse outside the interpreter's count of nesting.
  if (filter->run == map) return in.error("map of map is not implemented", Errc::unsupported);
  Args rest{{args.positional.begin() + 1, args.positional.end()}, args.named};
  for (const Value& v : in.collect(self)) {
    if (in.failed() || !in.charge(2)) return {};
    out.push_back(filter->run(in, v, rest));
  }
  return in.failed() ? Value() : in.generator(std::move(out));
}

// select, reject, selectattr, rejectattr.
template <bool Keep, bool Attribute>
Value select(Interpreter& in, const Value& self, const Args& args) {
  const auto& given = args.positional;
  if (Attribute && given.empty()) return in.error("Missing parameter for attribute name");
  const TestEntry* test = nullptr;
  Args rest;
  if (given.size() > Attribute) {
    const Value& name = given[Attribute];
    test = name.is_string() ? find_test(name.text()) : nullptr;
    if (!test) return in.error("No test named " + in.repr(name) + ".");
    rest.positional.assign(given.begin() + Attribute + 1, given.end());
    rest.named = args.named;
  }
  std::vector<Value> out;
  for (const Value& v : in.collect(self)) {
    Value subject = Attribute ? dotted(in, v, given[0]) : v;
    if (in.failed() || !in.charge(1)) return {};
    bool passed = test ? test->run(in, subject, rest) : truthy(subject);
    if (passed == Keep) out.push_back(v);
  }
  return in.failed() ? Value() : in.generator(std::move(out));
}

constexpr FilterEntry kSequenceFilters[] = {
    {"batch", batch},
    {"count", length},
    {"dictsort", dictsort},
    {"first", first},
    {"groupby", groupby},
    {"items", items},
    {"join", join},
    {"last", last},
    {"length", length},
    {"list", list},
    {"map", map},
    {"max", extreme<1>},
    {"min", extreme<-1>},
    {"reject", select<false, false>},
    {"rejectattr", select<false, true>},
    {"reverse", reverse},
    {"select", select<true, false>},
    {"selectattr", select<true, true>},
    {"slice", slice},
    {"sort", sort},
    {"sum", sum},
    {"unique", unique},
};

}  // namespace

std::span<const FilterEntry> sequence_filters() {
  return kSequenceFilters;
}

}  // namespace pinion::jinja
