// x.name, x[key] and slices, with Jinja's order: a dot tries the attribute first and then the item, brackets the
// reverse. What is missing is undefined with a message, not an error.
#include <algorithm>

#include "text/jinja_interpreter.h"
#include "text/jinja_unicode.h"

namespace pinion::jinja {
namespace {

struct BoundMethod final : Callable {
  BoundMethod(Value s, const MethodEntry& m, Memory* memory) : Callable(memory, 48), self(std::move(s)), method(m) {
    depth = self.depth() + 1;
  }
  Value call(Interpreter& in, Args& args) override { return method.run(in, self, args); }
  std::string repr() const override {
    return "<built-in method " + std::string(method.name) + " of " + std::string(jinja::type_name(self)) + " object>";
  }
  std::string_view type_name() const override { return "builtin_function_or_method"; }
  Value self;
  const MethodEntry& method;
};

// The attribute, if the object has one of that name.
std::optional<Value> find_attribute(Interpreter& in, const Value& object, std::string_view name) {
  if (const MethodEntry* method = find_method(object, name)) {
    if (!method->run) {
      return in.undefined("access to attribute '" + std::string(name) + "' of '" + std::string(type_name(object)) +
                          "' object is unsafe.");
    }
    return bind_method(in, object, *method);
  }
  if (object.is(Kind::space)) {
    Value* v = object.as<Namespace>().find(name);
    return v ? std::optional<Value>(*v) : std::nullopt;
  }
  if (object.is(Kind::callable)) {
    bool found = false;
    Value v = object.as<Callable>().attribute(in, name, found);
    return found ? std::optional<Value>(std::move(v)) : std::nullopt;
  }
  if (object.is(Kind::tuple) && object.as<Items>().group) {
    if (name == "grouper") return object.items()[0];
    if (name == "list") return object.items()[1];
  }
  return std::nullopt;
}

// The item; nullopt when there is none, whatever the reason.
std::optional<Value> find_item(Interpreter& in, const Value& object, const Value& key) {
  if (object.is(Kind::dict)) {
    if (!hashable(key) || key.weight() > 1000000) return std::nullopt;
    const Value* v = object.as<Dict>().find(key);
    return v ? std::optional<Value>(*v) : std::nullopt;
  }
  if (!key.is_int()) return std::nullopt;
  bool indexable = object.is_string() || object.is_sequence() || object.is(Kind::range);
  if (!indexable) return std::nullopt;
  auto size = static_cast<int64_t>(*in.length(object));
  int64_t i = key.as_int();
  if (i < 0) i += size;
  if (i < 0 || i >= size) return std::nullopt;
  auto index = static_cast<size_t>(i);
  if (object.is_sequence()) return object.items()[index];
  if (object.is(Kind::range)) return Value::integer(object.as<Range>().at(i));
  const std::string& text = object.text();
  if (object.points() != text.size() && !in.charge(index / 32)) return std::nullopt;
  size_t begin = point_offset(text, object.points(), index), end = begin;
  decode_point(text, end);
  return in.string(text.substr(begin, end - begin), object.markup());
}

}  // namespace

Value bind_method(Interpreter& in, const Value& self, const MethodEntry& method) {
  return in.make(Kind::callable, std::make_shared<BoundMethod>(self, method, in.memory()));
}

Value Interpreter::attribute(const Value& object, std::string_view name) {
  if (object.is_undefined()) return undefined_error(object);
  if (object.is(Kind::dict)) {  // the common case, without building a key
    if (!find_method(object, name)) {
      if (const Value* v = object.as<Dict>().find(name)) return *v;
    }
  }
  if (auto v = find_attribute(*this, object, name)) return *std::move(v);
  return undefined("'" + object_name(object) + "' has no attribute '" + std::string(name) + "'");
}

Value Interpreter::item(const Value& object, const Value& key) {
  if (object.is_undefined()) return undefined_error(object);
  if (auto v = find_item(*this, object, key)) return *std::move(v);
  if (failed()) return {};
  if (!key.is_string()) return undefined("'" + object_name(object) + "' has no element " + repr(key));
  if (auto v = find_attribute(*this, object, key.text())) return *std::move(v);
  if (!reserve(key.text().size())) return {};
  return undefined("'" + object_name(object) + "' has no attribute '" + key.text() + "'");
}

Value Interpreter::slice(const Value& object, const Value& start, const Value& stop, const Value& step) {
  if (object.is_undefined()) return undefined_error(object);
  if (!object.is_string() && !object.is_sequence() && !object.is(Kind::range)) {
    return undefined("'" + object_name(object) + "' has no element slice");
  }
  for (const Value* v : {&start, &stop, &step}) {
    if (!v->is_none() && !v->is_int()) {
      if (v->is_undefined()) return undefined_error(*v);
      // Python raises inside the lookup, which Jinja turns into an undefined value.
      return undefined("'" + object_name(object) + "' has no element slice");
    }
  }
  auto n = static_cast<int64_t>(*length(object));
  int64_t by = step.is_none() ? 1 : step.as_int();
  if (by == 0) return error("slice step cannot be zero");
  int64_t low = by > 0 ? 0 : -1, high = by > 0 ? n : n - 1;
  auto bound = [&](const Value& v, int64_t otherwise) {
    if (v.is_none()) return otherwise;
    int64_t i = v.as_int();
    return std::clamp(i < 0 ? (i < -n ? low : i + n) : i, low, high);
  };
  int64_t from = bound(start, by > 0 ? low : high), to = bound(stop, by > 0 ? high : low);
  int64_t count = 0;
  if (by > 0 && from < to) count = (to - from - 1) / by + 1;
  if (by < 0 && from > to) count = by == INT64_MIN ? 1 : (from - to - 1) / -by + 1;
  if (object.is(Kind::range)) {
    const Range& r = object.as<Range>();
    int64_t stride = count > 1 ? r.step * by : r.step;
    return make(Kind::range, std::make_shared<Range>(count ? r.at(from) : r.start, count, stride, &memory_));
  }
  if (object.is_sequence()) {
    if (!reserve(static_cast<size_t>(count) * sizeof(Value))) return {};
    std::vector<Value> out;
    out.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) out.push_back(object.items()[static_cast<size_t>(from + i * by)]);
    return sequence(object.kind(), std::move(out));
  }
  const std::string& text = object.text();
  if (!reserve(text.size())) return {};
  if (by == 1) {
    if (count == 0) return string("", object.markup());
    size_t begin = point_offset(text, object.points(), static_cast<size_t>(from));
    std::string_view rest = std::string_view(text).substr(begin);
    size_t size = point_offset(rest, object.points() - static_cast<size_t>(from), static_cast<size_t>(count));
    return string(std::string(rest.substr(0, size)), object.markup());
  }
  std::string out;
  if (object.points() == text.size()) {
    for (int64_t i = 0; i < count; ++i) out += text[static_cast<size_t>(from + i * by)];
    return string(std::move(out), object.markup());
  }
  if (!reserve(text.size() * sizeof(size_t))) return {};
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.size(); decode_point(text, at)) offsets.push_back(at);
  offsets.push_back(text.size());
  for (int64_t i = 0; i < count; ++i) {
    auto k = static_cast<size_t>(from + i * by);
    out.append(text, offsets[k], offsets[k + 1] - offsets[k]);
  }
  return string(std::move(out), object.markup());
}

Params::Params(Interpreter& in, const Args& args, std::string_view callee,
               std::initializer_list<std::string_view> names, size_t required)
    : in_(in), callee_(callee) {
  auto refuse = [&](const std::string& why) {
    ok_ = false;
    in.error(std::string(callee) + "() " + why);
  };
  if (args.positional.size() > names.size()) {
    refuse("takes at most " + std::to_string(names.size()) + " arguments");
    return;
  }
  for (size_t i = 0; i < args.positional.size(); ++i) bound_[i] = &args.positional[i];
  for (const auto& [name, value] : args.named) {
    auto it = std::find(names.begin(), names.end(), name);
    auto i = static_cast<size_t>(it - names.begin());
    if (it == names.end() || bound_[i]) {
      refuse(it == names.end() ? "got an unexpected keyword argument '" + name + "'"
                               : "got multiple values for argument '" + name + "'");
      return;
    }
    bound_[i] = &value;
  }
  for (size_t i = 0; i < required && ok_; ++i) {
    if (!bound_[i]) refuse("misses the argument '" + std::string(names.begin()[i]) + "'");
  }
}

int64_t Params::integer(size_t i, int64_t fallback) {
  if (!bound_[i]) return fallback;
  if (bound_[i]->is_int()) return bound_[i]->as_int();
  ok_ = false;
  if (bound_[i]->is_undefined()) {
    in_.undefined_error(*bound_[i]);
  } else {
    in_.error(std::string(callee_) + "() needs an integer, not '" + std::string(type_name(*bound_[i])) + "'");
  }
  return fallback;
}

std::string Params::text(size_t i, std::string_view fallback) {
  return bound_[i] ? in_.str(*bound_[i]) : std::string(fallback);
}

}  // namespace pinion::jinja
