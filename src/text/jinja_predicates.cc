// The tests of "is": x is defined, x is divisibleby 3, …
#include "text/jinja_filters.h"
#include "text/jinja_unicode.h"

namespace pinion::jinja {
namespace {

template <bool (*Test)(Interpreter&, const Value&)>
bool plain(Interpreter& in, const Value& v, const Args& args) {
  Params p(in, args, "test", {});
  return p.ok() && Test(in, v);
}

bool defined(Interpreter&, const Value& v) {
  return !v.is_undefined();
}
bool undefined(Interpreter&, const Value& v) {
  return v.is_undefined();
}
bool none(Interpreter&, const Value& v) {
  return v.is_none();
}
bool boolean(Interpreter&, const Value& v) {
  return v.is(Kind::boolean);
}
bool is_true(Interpreter&, const Value& v) {
  return v.is(Kind::boolean) && v.as_bool();
}
bool is_false(Interpreter&, const Value& v) {
  return v.is(Kind::boolean) && !v.as_bool();
}
bool integer(Interpreter&, const Value& v) {
  return v.is(Kind::integer);
}
bool real(Interpreter&, const Value& v) {
  return v.is(Kind::real);
}
bool number(Interpreter&, const Value& v) {
  return v.is_number();
}
bool string(Interpreter&, const Value& v) {
  return v.is_string();
}
bool mapping(Interpreter&, const Value& v) {
  return v.is(Kind::dict);
}
bool iterable(Interpreter& in, const Value& v) {
  return in.iterable(v);
}
bool sequence(Interpreter&, const Value& v) {
  return v.is_undefined() || v.is_string() || v.is_sequence() || v.is(Kind::dict) || v.is(Kind::range);
}
bool callable(Interpreter&, const Value& v) {
  return v.is(Kind::callable) || v.is_undefined();
}
bool escaped(Interpreter&, const Value& v) {
  return v.markup();
}
bool lower_case(Interpreter& in, const Value& v) {
  return text_is_case(in.str(v), true);
}
bool upper_case(Interpreter& in, const Value& v) {
  return text_is_case(in.str(v), false);
}

bool remainder(Interpreter& in, const Value& v, int64_t by, int64_t want) {
  Value r = in.arithmetic(Op::modulo, v, Value::integer(by));
  return !in.failed() && in.equals(r, Value::integer(want));
}
bool odd(Interpreter& in, const Value& v) {
  return remainder(in, v, 2, 1);
}
bool even(Interpreter& in, const Value& v) {
  return remainder(in, v, 2, 0);
}

bool divisibleby(Interpreter& in, const Value& v, const Args& args) {
  Params p(in, args, "divisibleby", {"num"}, 1);
  if (!p.ok()) return false;
  Value r = in.arithmetic(Op::modulo, v, p[0]);
  return !in.failed() && in.equals(r, Value::integer(0));
}

template <Op Operator>
bool compared(Interpreter& in, const Value& v, const Args& args) {
  Params p(in, args, "test", {"other"}, 1);
  return p.ok() && in.compare(Operator, v, p[0]);
}

bool sameas(Interpreter& in, const Value& v, const Args& args) {
  Params p(in, args, "sameas", {"other"}, 1);
  if (!p.ok() || v.kind() != p[0].kind()) return false;
  if (v.get()) return v.get() == p[0].get() || (v.is_string() && v.text() == p[0].text());
  return equal(v, p[0]);
}

template <class Find>
bool names(Interpreter& in, const Value& v, const Args& args, Find find) {
  Params p(in, args, "test", {});
  return p.ok() && v.is_string() && find(v.text()) != nullptr;
}
bool filter_exists(Interpreter& in, const Value& v, const Args& args) {
  return names(in, v, args, find_filter);
}
bool test_exists(Interpreter& in, const Value& v, const Args& args) {
  return names(in, v, args, find_test);
}

constexpr TestEntry kTests[] = {
    {"!=", compared<Op::ne>},
    {"<", compared<Op::lt>},
    {"<=", compared<Op::le>},
    {"==", compared<Op::eq>},
    {">", compared<Op::gt>},
    {">=", compared<Op::ge>},
    {"boolean", plain<boolean>},
    {"callable", plain<callable>},
    {"defined", plain<defined>},
    {"divisibleby", divisibleby},
    {"eq", compared<Op::eq>},
    {"equalto", compared<Op::eq>},
    {"escaped", plain<escaped>},
    {"even", plain<even>},
    {"false", plain<is_false>},
    {"filter", filter_exists},
    {"float", plain<real>},
    {"ge", compared<Op::ge>},
    {"greaterthan", compared<Op::gt>},
    {"gt", compared<Op::gt>},
    {"in", compared<Op::in>},
    {"integer", plain<integer>},
    {"iterable", plain<iterable>},
    {"le", compared<Op::le>},
    {"lessthan", compared<Op::lt>},
    {"lower", plain<lower_case>},
    {"lt", compared<Op::lt>},
    {"mapping", plain<mapping>},
    {"ne", compared<Op::ne>},
    {"none", plain<none>},
    {"number", plain<number>},
    {"odd", plain<odd>},
    {"sameas", sameas},
    {"sequence", plain<sequence>},
    {"string", plain<string>},
    {"test", test_exists},
    {"true", plain<is_true>},
    {"undefined", plain<undefined>},
    {"upper", plain<upper_case>},
};

}  // namespace

const TestEntry* find_test(std::string_view name) {
  for (const TestEntry& entry : kTests) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

}  // namespace pinion::jinja
