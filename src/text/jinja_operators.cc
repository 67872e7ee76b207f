// Python's operators and protocols on values: arithmetic, comparison, membership, iteration, printing, construction.
#include <algorithm>
#include <cmath>

#include "text/jinja_filters.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_unicode.h"

namespace pinion::jinja {

bool Cursor::next(Interpreter& in, Value& out) {
  switch (source_.kind()) {
    case Kind::string: {
      const std::string& text = source_.text();
      if (at_ >= text.size() || !in.charge(1)) return false;
      size_t start = at_;
      decode_point(text, at_);
      out = in.string(text.substr(start, at_ - start), source_.markup());
      return !in.failed();
    }
    case Kind::list:
    case Kind::tuple:
      if (at_ >= source_.items().size()) return false;
      out = source_.items()[at_++];
      return true;
    case Kind::dict:
      if (at_ >= source_.as<Dict>().entries.size()) return false;
      out = source_.as<Dict>().entries[at_++].first;
      return true;
    case Kind::view: {
      const View& view = source_.as<View>();
      const auto& entries = view.dict.as<Dict>().entries;
      if (at_ >= entries.size() || !in.charge(1)) return false;
      const Entry& entry = entries[at_++];
      out = view.part == View::Part::keys     ? entry.first
            : view.part == View::Part::values ? entry.second
                                              : in.tuple({entry.first, entry.second});
      return !in.failed();
    }
    case Kind::range:
      if (at_ >= static_cast<size_t>(source_.as<Range>().size)) return false;
      out = Value::integer(source_.as<Range>().at(static_cast<int64_t>(at_++)));
      return true;
    case Kind::generator: {
      Generator& g = source_.as<Generator>();
      if (g.next >= g.items.size()) return false;
      out = g.items[g.next++];
      return true;
    }
    default:
      return false;
  }
}

Value Interpreter::make(Kind kind, std::shared_ptr<Object> object) {
  if (object->depth > kMaxValueDepth) return error("values are nested too deeply");
  if (!reserve(0)) return {};
  return Value::object(kind, std::move(object));
}

Value Interpreter::string(std::string text, bool markup) {
  if (!reserve(text.size())) return {};
  return Value::string(std::move(text), &memory_, markup);
}

Value Interpreter::sequence(Kind kind, std::vector<Value> items) {
  if (!reserve(items.size() * sizeof(Value))) return {};
  return make(kind, std::make_shared<Items>(std::move(items), &memory_));
}

Value Interpreter::generator(std::vector<Value> items) {
  if (!reserve(items.size() * sizeof(Value))) return {};
  return make(Kind::generator, std::make_shared<Generator>(std::move(items), &memory_));
}

bool Interpreter::check_hashable(const Value& key) {
  if (key.weight() > 1000 && key.is(Kind::tuple)) {
    error("a tuple is too large for a key");
    return false;
  }
  if (hashable(key)) return true;
  error("unhashable type: '" + std::string(type_name(key)) + "'");
  return false;
}

Value Interpreter::dict(std::vector<Entry> entries) {
  for (const Entry& entry : entries) {
    if (!check_hashable(entry.first)) return {};
  }
  if (!reserve(entries.size() * sizeof(Entry))) return {};
  return make(Kind::dict, std::make_shared<Dict>(unique_entries(std::move(entries)), &memory_));
}

Value Interpreter::undefined(std::string message) {
  if (!charge(1)) return {};
  return Value::object(Kind::undefined, std::make_shared<Text>(std::move(message), &memory_));
}

Value Interpreter::undefined_error(const Value& v) {
  return error(v.get() ? static_cast<const Text*>(v.get())->text : "the value is undefined");
}

// Printing is charged by weight first, so that a structure that shares its parts cannot print for ever.
std::string Interpreter::str(const Value& v) {
  std::string out;
  if (!charge(v.weight()) || !reserve(v.is_string() ? v.text().size() : v.weight())) return out;
  if (v.is(Kind::space)) {
    out = "<Namespace {";
    for (const auto& [name, value] : v.as<Namespace>().vars) {
      if (out.back() != '{') out += ", ";
      append_quoted(out, name);
      out += ": ";
      if (!charge(value.weight())) break;
      append_repr(out, value);
    }
    return out + "}>";
  }
  append_str(out, v);
  reserve(out.size());
  return out;
}

std::string Interpreter::repr(const Value& v) {
  std::string out;
  if (!charge(v.weight()) || !reserve(v.weight())) return out;
  append_repr(out, v);
  reserve(out.size());
  return out;
}

std::optional<size_t> Interpreter::length(const Value& v) {
  switch (v.kind()) {
    case Kind::undefined:
      return 0;
    case Kind::string:
      return v.points();
    case Kind::list:
    case Kind::tuple:
      return v.items().size();
    case Kind::dict:
      return v.as<Dict>().entries.size();
    case Kind::view:
      return v.as<View>().dict.as<Dict>().entries.size();
    case Kind::range:
      return static_cast<size_t>(v.as<Range>().size);
    default:
      return std::nullopt;
  }
}

bool Interpreter::iterable(const Value& v) const {
  switch (v.kind()) {
    case Kind::none:
    case Kind::boolean:
    case Kind::integer:
    case Kind::real:
    case Kind::space:
      return false;
    case Kind::callable:
      return false;
    default:
      return true;
  }
}

Cursor Interpreter::iterate(const Value& v) {
  if (!iterable(v)) error("'" + std::string(type_name(v)) + "' object is not iterable");
  return Cursor(v);
}

std::vector<Value> Interpreter::collect(const Value& v) {
  std::vector<Value> out;
  if (failed()) return out;
  if (v.is_sequence()) {
    if (reserve(v.items().size() * sizeof(Value))) out = v.items();
    return out;
  }
  Cursor cursor = iterate(v);
  Value item;
  if (auto n = length(v); n && !reserve(*n * sizeof(Value))) return out;
  while (!failed() && cursor.next(*this, item)) out.push_back(item);
  return out;
}

Value Interpreter::call(const Value& callee, Args& args) {
  if (!charge(1)) return {};
  if (callee.is_undefined()) return undefined_error(callee);
  if (!callee.is(Kind::callable)) return error("'" + std::string(type_name(callee)) + "' object is not callable");
  Value keep = callee;  // the call may replace what held it
  return keep.as<Callable>().call(*this, args);
}

Value Interpreter::multiply(const Value& a, const Value& b) {
  const Value& s = a.is_int() ? b : a;
  int64_t n = std::max<int64_t>(0, (a.is_int() ? a : b).as_int());
  size_t unit = s.is_string() ? s.text().size() : s.items().size() * sizeof(Value);
  if (unit != 0 && static_cast<uint64_t>(n) > memory_.limit / unit) {
    return error("the template needs too much memory");
  }
  if (!reserve(unit * static_cast<size_t>(n))) return {};
  if (s.is_string()) {
    std::string out;
    out.reserve(unit * static_cast<size_t>(n));
    for (int64_t i = 0; i < n && unit; ++i) out += s.text();
    return string(std::move(out), s.markup());
  }
  std::vector<Value> out;
  out.reserve(s.items().size() * static_cast<size_t>(n));
  for (int64_t i = 0; i < n && unit; ++i) out.insert(out.end(), s.items().begin(), s.items().end());
  return sequence(s.kind(), std::move(out));
}

Value Interpreter::number_op(Op op, const Value& a, const Value& b) {
  bool ints = a.is_int() && b.is_int();
  int64_t x = a.as_int(), y = b.as_int(), z = 0;
  double u = a.as_real(), v = b.as_real();
  auto overflow = [&] { return error("integers beyond 64 bits are not implemented", Errc::unsupported); };
  switch (op) {
    case Op::add:
      if (!ints) return Value::real(u + v);
      return __builtin_add_overflow(x, y, &z) ? overflow() : Value::integer(z);
    case Op::subtract:
      if (!ints) return Value::real(u - v);
      return __builtin_sub_overflow(x, y, &z) ? overflow() : Value::integer(z);
    case Op::multiply:
      if (!ints) return Value::real(u * v);
      return __builtin_mul_overflow(x, y, &z) ? overflow() : Value::integer(z);
    case Op::divide:
      if (v == 0) return error(ints ? "division by zero" : "float division by zero");
      return Value::real(u / v);
    case Op::floor_divide:
    case Op::modulo: {
      bool divide = op == Op::floor_divide;
      if (v == 0) {
        return error(ints     ? "integer division or modulo by zero"
                     : divide ? "float floor division by zero"
                              : "float modulo");
      }
      if (ints) {
        if (y == -1) return divide ? (x == INT64_MIN ? overflow() : Value::integer(-x)) : Value::integer(0);
        int64_t q = x / y, r = x % y;
        if (r != 0 && (r < 0) != (y < 0)) {
          --q;
          r += y;
        }
        return Value::integer(divide ? q : r);
      }
      double r = std::fmod(u, v);
      if (r != 0 && (r < 0) != (v < 0)) r += v;
      if (!divide) return Value::real(r == 0 ? std::copysign(0.0, v) : r);
      double q = (u - r) / v;
      double whole = std::floor(q);
      if (q - whole > 0.5) whole += 1;
      return Value::real(q == 0 ? std::copysign(0.0, u / v) : whole);
    }
    case Op::power: {
      if (!ints || y < 0) {
        if (u == 0 && v < 0) return error("0.0 cannot be raised to a negative power");
        if (u < 0 && std::floor(v) != v) return error("complex numbers are not implemented", Errc::unsupported);
        double r = std::pow(u, v);
        if (std::isinf(r) && !std::isinf(u) && !std::isinf(v)) return error("Numerical result out of range");
        return Value::real(r);
      }
      int64_t result = 1, base = x;
      while (y > 0) {
        if ((y & 1) && __builtin_mul_overflow(result, base, &result)) return overflow();
        y >>= 1;
        if (y > 0 && __builtin_mul_overflow(base, base, &base)) return overflow();
      }
      return Value::integer(result);
    }
    default:
      return {};
  }
}

Value Interpreter::arithmetic(Op op, const Value& a, const Value& b) {
  static constexpr std::string_view kSigns[] = {"+", "-", "~", "*", "/", "//", "%", "** or pow()"};
  if (a.is_number() && b.is_number()) return number_op(op, a, b);
  if (op == Op::modulo && a.is_string()) return format_percent(*this, a, b);
  if (a.is_undefined()) return undefined_error(a);
  if (b.is_undefined()) return undefined_error(b);
  if (op == Op::multiply &&
      ((a.is_int() && (b.is_string() || b.is_sequence())) || (b.is_int() && (a.is_string() || a.is_sequence())))) {
    return multiply(a, b);
  }
  if (op == Op::add && a.is_string() && b.is_string()) {
    if (!reserve(a.text().size() + b.text().size())) return {};
    if (a.markup() == b.markup()) return string(a.text() + b.text(), a.markup());
    return string(a.markup() ? a.text() + escape_html(b.text()) : escape_html(a.text()) + b.text(), true);
  }
  if (op == Op::add && a.is_sequence() && a.kind() == b.kind()) {
    if (!reserve((a.items().size() + b.items().size()) * sizeof(Value))) return {};
    std::vector<Value> out = a.items();
    out.insert(out.end(), b.items().begin(), b.items().end());
    return sequence(a.kind(), std::move(out));
  }
  if (op == Op::add && (a.is_string() || a.is_sequence())) {
    std::string type(type_name(a));
    return error("can only concatenate " + type + " (not \"" + std::string(type_name(b)) + "\") to " + type);
  }
  return error("unsupported operand type(s) for " + std::string(kSigns[static_cast<int>(op)]) + ": '" +
               std::string(type_name(a)) + "' and '" + std::string(type_name(b)) + "'");
}

int Interpreter::order(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return compare_numbers(a, b);
  if (a.is_undefined()) return undefined_error(a), 2;
  if (b.is_undefined()) return undefined_error(b), 2;
  if (a.is_string() && b.is_string()) {
    if (!charge(1 + std::min(a.text().size(), b.text().size()) / 64)) return 2;
    int c = a.text().compare(b.text());
    return c < 0 ? -1 : c > 0;
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    const auto &x = a.items(), &y = b.items();
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (equals(x[i], y[i])) continue;
      return failed() ? 2 : order(x[i], y[i]);
    }
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  error("'<' not supported between instances of '" + std::string(type_name(a)) + "' and '" + std::string(type_name(b)) +
        "'");
  return 2;
}

bool Interpreter::compare(Op op, const Value& a, const Value& b) {
  switch (op) {
    case Op::eq:
      return equals(a, b);
    case Op::ne:
      return !equals(a, b);
    case Op::in:
      return contains(b, a);
    case Op::not_in:
      return !contains(b, a);
    default:
      break;
  }
  int c = order(a, b);
  if (failed() || c == 2) return false;
  return op == Op::lt ? c < 0 : op == Op::le ? c <= 0 : op == Op::gt ? c > 0 : c >= 0;
}

bool Interpreter::contains(const Value& container, const Value& item) {
  if (container.is_string()) {
    if (!item.is_string()) {
      error("'in <string>' requires string as left operand, not " + std::string(type_name(item)));
      return false;
    }
    return charge(1 + container.text().size() / 32) && container.text().find(item.text()) != std::string::npos;
  }
  if (container.is(Kind::dict)) return check_hashable(item) && container.as<Dict>().find(item) != nullptr;
  if (!iterable(container)) {
    error("argument of type '" + std::string(type_name(container)) + "' is not iterable");
    return false;
  }
  Cursor cursor(container);
  Value v;
  while (!failed() && cursor.next(*this, v)) {
    if (equals(v, item)) return !failed();
  }
  return false;
}

}  // namespace pinion::jinja
