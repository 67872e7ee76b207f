// Evaluation of expression nodes. eval() itself keeps a small frame: each larger case has its own function.
#include "text/jinja_filters.h"
#include "text/jinja_interpreter.h"

namespace pinion::jinja {

Value Interpreter::eval(const Expr& e) {
  if (!charge(1)) return {};
  if (e.kind == ExprKind::constant) return e.value;
  if (e.kind == ExprKind::name) return lookup(e.id);
  line_ = e.line;
  Deeper deeper(*this);
  if (failed()) return {};
  switch (e.kind) {
    case ExprKind::constant:
    case ExprKind::name:
    case ExprKind::attribute_target:
    case ExprKind::slice:
      return {};
    case ExprKind::list:
    case ExprKind::tuple:
      return eval_kids(e);
    case ExprKind::dict:
      return eval_dict(e);
    case ExprKind::attribute: {
      Value object = eval(*e.kids[0]);
      return failed() ? Value() : attribute(object, e.text);
    }
    case ExprKind::item:
      return eval_item(e);
    case ExprKind::call:
      return eval_call(e);
    case ExprKind::filter:
      return eval_filter(e, nullptr);
    case ExprKind::test:
      return eval_test(e);
    case ExprKind::negate:
    case ExprKind::plus:
      return eval_sign(e);
    case ExprKind::logic_not:
      return Value::boolean(!truthy(eval(*e.kids[0])));
    case ExprKind::logic_and:
    case ExprKind::logic_or: {
      Value v;
      for (const ExprPtr& kid : e.kids) {
        v = eval(*kid);
        if (failed() || truthy(v) == (e.kind == ExprKind::logic_or)) break;
      }
      return v;
    }
    case ExprKind::compare:
      return eval_compare(e);
    case ExprKind::arithmetic:
      return eval_arithmetic(e);
    case ExprKind::concat:
      return eval_concat(e);
    case ExprKind::conditional: {
      bool condition = truthy(eval(*e.kids[1]));
      if (failed()) return {};
      if (condition) return eval(*e.kids[0]);
      if (e.kids[2]) return eval(*e.kids[2]);
      return undefined("the inline if-expression evaluated to false and no else section was defined.");
    }
  }
  return {};
}

Value Interpreter::eval_kids(const Expr& e) {
  std::vector<Value> items;
  items.reserve(e.kids.size());
  for (const ExprPtr& kid : e.kids) {
    items.push_back(eval(*kid));
    if (failed()) return {};
  }
  return sequence(e.kind == ExprKind::list ? Kind::list : Kind::tuple, std::move(items));
}

Value Interpreter::eval_dict(const Expr& e) {
  std::vector<Entry> entries;
  entries.reserve(e.kids.size() / 2);
  for (size_t i = 0; i + 1 < e.kids.size(); i += 2) {
    Value key = eval(*e.kids[i]);
    if (failed()) return {};
    entries.emplace_back(std::move(key), eval(*e.kids[i + 1]));
    if (failed()) return {};
  }
  return dict(std::move(entries));
}

Value Interpreter::eval_item(const Expr& e) {
  Value object = eval(*e.kids[0]);
  if (failed()) return {};
  const Expr& key = *e.kids[1];
  if (key.kind != ExprKind::slice) {
    Value k = eval(key);
    return failed() ? Value() : item(object, k);
  }
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    bounds[i] = key.kids[i] ? eval(*key.kids[i]) : Value::none();
    if (failed()) return {};
  }
  return slice(object, bounds[0], bounds[1], bounds[2]);
}

void Interpreter::eval_arguments(const Arguments* source, Args& args) {
  if (!source || failed()) return;
  args.positional.reserve(source->positional.size());
  for (const ExprPtr& e : source->positional) {
    args.positional.push_back(eval(*e));
    if (failed()) return;
  }
  for (const auto& [name, e] : source->named) {
    args.named.emplace_back(name, eval(*e));
    if (failed()) return;
  }
  if (source->star) {
    for (Value& v : collect(eval(*source->star))) args.positional.push_back(std::move(v));
  }
  if (source->star_star && !failed()) {
    Value rest = eval(*source->star_star);
    if (failed()) return;
    if (!rest.is(Kind::dict)) {
      error("argument after ** must be a mapping, not " + std::string(type_name(rest)));
      return;
    }
    const auto& entries = rest.as<Dict>().entries;
    if (!reserve(entries.size() * sizeof(Entry))) return;
    for (const auto& [key, value] : entries) {
      if (!key.is_string()) {
        error("keywords must be strings");
        return;
      }
      for (const auto& known : source->named) {
        if (known.first == key.text()) {
          error("got multiple values for keyword argument '" + key.text() + "'");
          return;
        }
      }
      args.named.emplace_back(key.text(), value);
    }
  }
}

// A method call on a builtin type runs without building the bound method.
Value Interpreter::eval_call(const Expr& e) {
  const Expr& target = *e.kids[0];
  Args args;
  if (target.kind == ExprKind::attribute) {
    Value self = eval(*target.kids[0]);
    if (failed()) return {};
    const MethodEntry* method = find_method(self, target.text);
    if (method && method->run) {
      eval_arguments(e.arguments.get(), args);
      line_ = e.line;
      return failed() ? Value() : method->run(*this, self, args);
    }
    Value callee = attribute(self, target.text);
    eval_arguments(e.arguments.get(), args);
    line_ = e.line;
    return failed() ? Value() : call(callee, args);
  }
  Value callee = eval(target);
  eval_arguments(e.arguments.get(), args);
  line_ = e.line;
  return failed() ? Value() : call(callee, args);
}

Value Interpreter::eval_filter(const Expr& e, const Value* input) {
  Value self = e.kids[0] ? eval(*e.kids[0]) : input ? *input : Value();
  Args args;
  eval_arguments(e.arguments.get(), args);
  if (failed()) return {};
  line_ = e.line;
  if (!e.filter) return error("No filter named '" + e.text + "'.");
  if (!charge(1)) return {};
  return e.filter->run(*this, self, args);
}

// A filter chain whose innermost input is `input`: {% filter a|b %} and {% set x | a %}.
Value Interpreter::eval_chain(const Expr* e, const Value& input) {
  std::vector<const Expr*> chain;
  for (; e; e = e->kids[0].get()) chain.push_back(e);
  Value v = input;
  for (auto it = chain.rbegin(); it != chain.rend() && !failed(); ++it) {
    Args args;
    eval_arguments((*it)->arguments.get(), args);
    if (failed()) break;
    line_ = (*it)->line;
    if (!(*it)->filter) return error("No filter named '" + (*it)->text + "'.");
    v = (*it)->filter->run(*this, v, args);
  }
  return v;
}

Value Interpreter::eval_test(const Expr& e) {
  Value self = eval(*e.kids[0]);
  Args args;
  eval_arguments(e.arguments.get(), args);
  if (failed()) return {};
  line_ = e.line;
  if (!e.test) return error("No test named '" + e.text + "'.");
  return Value::boolean(e.test->run(*this, self, args));
}

Value Interpreter::eval_arithmetic(const Expr& e) {
  Value left = eval(*e.kids[0]);
  for (size_t i = 0; i < e.ops.size() && !failed(); ++i) {
    Value right = eval(*e.kids[i + 1]);
    line_ = e.line;
    if (!failed()) left = arithmetic(e.ops[i], left, right);
  }
  return left;
}

Value Interpreter::eval_concat(const Expr& e) {
  std::string out;
  for (const ExprPtr& kid : e.kids) {
    Value v = eval(*kid);
    if (failed()) return {};
    if (v.is_string()) {
      if (!reserve(out.size() + v.text().size())) return {};
      out += v.text();
    } else {
      out += str(v);
    }
  }
  return string(std::move(out));
}

Value Interpreter::eval_compare(const Expr& e) {
  Value left = eval(*e.kids[0]);
  for (size_t i = 0; i < e.ops.size(); ++i) {
    if (failed()) return {};
    Value right = eval(*e.kids[i + 1]);
    if (failed()) return {};
    line_ = e.line;
    if (!compare(e.ops[i], left, right)) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::eval_sign(const Expr& e) {
  Value v = eval(*e.kids[0]);
  if (failed()) return {};
  if (v.is_undefined()) return undefined_error(v);
  bool negate = e.kind == ExprKind::negate;
  if (v.is(Kind::real)) return Value::real(negate ? -v.as_real() : v.as_real());
  if (v.is_int()) return negate ? arithmetic(Op::subtract, Value::integer(0), v) : Value::integer(v.as_int());
  return error(std::string("bad operand type for unary ") + (negate ? "-" : "+") + ": '" + std::string(type_name(v)) +
               "'");
}

}  // namespace pinion::jinja
