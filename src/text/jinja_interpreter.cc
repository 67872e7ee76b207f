// Statements, scopes, loops and macros.
#include "text/jinja_interpreter.h"

#include <algorithm>

#include "text/jinja_filters.h"
#include "text/jinja_loop.h"

namespace pinion::jinja {
namespace {

struct MacroValue final : Callable {
  MacroValue(const Macro& m, std::shared_ptr<Scope> s, Memory* memory)
      : Callable(memory, 64), macro(m), scope(std::move(s)) {}
  Value call(Interpreter& in, Args& args) override { return in.call_macro(macro, scope, args); }
  Value attribute(Interpreter& in, std::string_view name, bool& found) override {
    found = name == "name";
    return found ? in.string(macro.name) : Value();
  }
  std::string repr() const override { return "<Macro '" + macro.name + "'>"; }
  std::string_view type_name() const override { return "Macro"; }
  void release() override { scope.reset(); }

  const Macro& macro;
  std::shared_ptr<Scope> scope;
};

}  // namespace

Interpreter::Interpreter(const Template& source, Limits limits, std::time_t now)
    : template_(source),
      memory_{0, limits.memory},
      steps_(limits.steps),
      depth_left_(limits.depth),
      now_(now),
      root_(source.names.size()),
      scope_(std::make_shared<Scope>()) {}

Interpreter::~Interpreter() {
  for (auto& object : owned_) object->release();
}

void Interpreter::define(std::string_view name, Value value) {
  for (size_t i = 0; i < template_.names.size(); ++i) {
    if (template_.names[i] == name) root_[i] = {true, std::move(value)};
  }
}

Result<std::string> Interpreter::render() {
  for (size_t i = 0; i < root_.size(); ++i) {
    if (root_[i].first) continue;
    Value global = find_global(*this, template_.names[i]);
    if (!global.is_undefined()) root_[i] = {true, std::move(global)};
  }
  exec(template_.body);
  if (error_) return *std::move(error_);
  return std::move(output_);
}

Value Interpreter::error(std::string message, Errc code) {
  if (!error_) error_ = fail(code, message, "chat template, line " + std::to_string(line_));
  return {};
}

bool Interpreter::out_of_steps() {
  steps_ = 0;
  error("the template takes too many steps");
  return false;
}

bool Interpreter::reserve(size_t bytes) {
  if (bytes > memory_.limit || memory_.live > memory_.limit - bytes) {
    error("the template needs too much memory");
    return false;
  }
  return charge(bytes / 64);
}

void Interpreter::emit(std::string_view text) {
  if (!reserve(text.size())) return;
  memory_.live += text.size();
  out_->append(text);
}

void Interpreter::begin_capture(std::string& buffer, std::string*& outer) {
  outer = out_;
  out_ = &buffer;
}

Value Interpreter::end_capture(std::string& buffer, std::string* outer) {
  out_ = outer;
  memory_.live -= buffer.size();
  return string(std::move(buffer));
}

Interpreter::Flow Interpreter::exec(const Body& body) {
  for (const auto& s : body) {
    Flow flow = exec(*s);
    if (flow != Flow::next) return flow;
  }
  return Flow::next;
}

Interpreter::Flow Interpreter::exec_scoped(const Body& body, std::shared_ptr<Scope> scope) {
  std::swap(scope_, scope);
  Flow flow = exec(body);
  std::swap(scope_, scope);
  return flow;
}

Interpreter::Flow Interpreter::exec(const Stmt& s) {
  if (!charge(1)) return Flow::stop;
  line_ = s.line;
  if (s.kind == StmtKind::text) {
    emit(s.text);
    return failed() ? Flow::stop : Flow::next;
  }
  Deeper deeper(*this);
  if (!deeper.ok()) return Flow::stop;
  Flow flow = Flow::next;
  switch (s.kind) {
    case StmtKind::text:
      break;
    case StmtKind::print: {
      Value v = eval(*s.expr);
      if (failed()) break;
      if (v.is_string()) {
        emit(v.text());
      } else if (!v.is_undefined()) {
        emit(str(v));
      }
      break;
    }
    case StmtKind::condition:
      flow = exec_condition(s);
      break;
    case StmtKind::loop: {
      Value items = eval(*s.expr);
      run_loop(s, items, 0);
      break;
    }
    case StmtKind::set: {
      Value v = eval(*s.expr);
      if (!failed()) assign(*s.target, v, *scope_);
      break;
    }
    case StmtKind::set_block:
      exec_set_block(s);
      break;
    case StmtKind::macro:
      exec_macro(s);
      break;
    case StmtKind::call_block:
      exec_call_block(s);
      break;
    case StmtKind::filter_block:
      exec_filter_block(s);
      break;
    case StmtKind::scope: {
      auto scope = std::make_shared<Scope>();
      scope->parent = scope_;
      exec_scoped(s.body, std::move(scope));
      break;
    }
    case StmtKind::with:
      exec_with(s);
      break;
    case StmtKind::break_loop:
      return Flow::stop;
    case StmtKind::continue_loop:
      return Flow::again;
  }
  return failed() ? Flow::stop : flow;
}

Interpreter::Flow Interpreter::exec_condition(const Stmt& s) {
  for (const auto& [test, body] : s.branches) {
    bool taken = truthy(eval(*test));
    if (failed()) return Flow::stop;
    if (taken) return exec(body);
  }
  return exec(s.otherwise);
}

void Interpreter::exec_set_block(const Stmt& s) {
  std::string buffer, *outer;
  begin_capture(buffer, outer);
  auto scope = std::make_shared<Scope>();
  scope->parent = scope_;
  exec_scoped(s.body, std::move(scope));
  Value v = end_capture(buffer, outer);
  if (s.expr && !failed()) v = eval_chain(s.expr.get(), v);
  if (!failed()) assign(*s.target, v, *scope_);
}

void Interpreter::exec_filter_block(const Stmt& s) {
  std::string buffer, *outer;
  begin_capture(buffer, outer);
  auto scope = std::make_shared<Scope>();
  scope->parent = scope_;
  exec_scoped(s.body, std::move(scope));
  Value v = end_capture(buffer, outer);
  if (failed()) return;
  v = eval_chain(s.expr.get(), v);
  if (!failed()) emit(str(v));
}

void Interpreter::exec_with(const Stmt& s) {
  auto scope = std::make_shared<Scope>();
  scope->parent = scope_;
  for (const auto& [value, pair] : s.branches) {
    Value v = eval(*value);
    if (failed() || !assign(*pair[0]->target, v, *scope)) return;
  }
  exec_scoped(s.body, std::move(scope));
}

void Interpreter::exec_macro(const Stmt& s) {
  auto macro = std::make_shared<MacroValue>(*s.macro, scope_, &memory_);
  own(macro);
  if (reserve(0)) set(*scope_, s.id, Value::object(Kind::callable, std::move(macro)));
}

void Interpreter::exec_call_block(const Stmt& s) {
  auto caller = std::make_shared<MacroValue>(*s.macro, scope_, &memory_);
  own(caller);
  if (!reserve(0)) return;
  const Expr& e = *s.expr;
  Value callee = eval(*e.kids[0]);
  Args args;
  eval_arguments(e.arguments.get(), args);
  args.named.emplace_back("caller", Value::object(Kind::callable, std::move(caller)));
  if (failed()) return;
  Value v = call(callee, args);
  if (!failed()) emit(str(v));
}

void Interpreter::set(Scope& scope, uint32_t id, Value value) {
  if (!scope.parent) {
    root_[id] = {true, std::move(value)};
    return;
  }
  for (auto& [known, slot] : scope.vars) {
    if (known == id) {
      slot = std::move(value);
      return;
    }
  }
  scope.vars.emplace_back(id, std::move(value));
}

Value Interpreter::lookup(uint32_t id) {
  for (const Scope* scope = scope_.get(); scope; scope = scope->parent.get()) {
    for (const auto& [known, value] : scope->vars) {
      if (known == id) return value;
    }
  }
  if (root_[id].first) return root_[id].second;
  return undefined("'" + template_.names[id] + "' is undefined");
}

bool Interpreter::assign(const Expr& target, const Value& value, Scope& scope) {
  if (target.kind == ExprKind::name) {
    set(scope, target.id, value);
    return true;
  }
  if (target.kind == ExprKind::attribute_target) {
    Value object = lookup(target.id);
    if (!object.is(Kind::space)) {
      error("cannot assign attribute on non-namespace object");
      return false;
    }
    Namespace& space = object.as<Namespace>();
    if (Value* slot = space.find(target.text)) {
      *slot = value;
    } else if (charge(space.vars.size() / 8)) {
      space.vars.emplace_back(target.text, value);
    }
    return true;
  }
  std::vector<Value> parts = collect(value);
  if (failed()) return false;
  size_t want = target.kids.size(), got = parts.size();
  if (got != want) {
    error(got > want
              ? "too many values to unpack (expected " + std::to_string(want) + ")"
              : "not enough values to unpack (expected " + std::to_string(want) + ", got " + std::to_string(got) + ")");
    return false;
  }
  for (size_t i = 0; i < want; ++i) {
    if (!assign(*target.kids[i], parts[i], scope)) return false;
  }
  return true;
}

bool Interpreter::filter_accepts(const Stmt& loop, const std::shared_ptr<Scope>& outer, const Value& item) {
  auto scope = std::make_shared<Scope>();
  scope->parent = outer;
  if (!assign(*loop.target, item, *scope)) return false;
  std::swap(scope_, scope);
  bool accepted = truthy(eval(*loop.filter));
  std::swap(scope_, scope);
  return accepted && !failed();
}

void Interpreter::run_loop(const Stmt& s, const Value& items, int depth) {
  if (failed()) return;
  Cursor cursor = iterate(items);
  if (failed()) return;
  auto loop =
      std::make_shared<LoopValue>(s, s.filter || s.recursive ? scope_ : nullptr, std::move(cursor), depth, &memory_);
  Value loop_value = make(Kind::callable, loop);
  if (failed()) return;
  if (loop->scope && s.uses_loop) own(loop);
  std::shared_ptr<Scope> outer = scope_, scope;
  bool any = false;  // as in Jinja, an iteration counts against `else` once its body has run to the end
  Flow flow = Flow::next;
  while (flow != Flow::stop && loop->advance(*this)) {
    if (!charge(2)) break;
    if (!scope || scope.use_count() > 1) {  // a macro of the last iteration keeps it
      scope = std::make_shared<Scope>();
      scope->parent = outer;
    }
    scope->vars.clear();
    if (s.uses_loop) scope->vars.emplace_back(template_.loop_id, loop_value);
    if (!assign(*s.target, loop->current, *scope)) break;
    scope_ = scope;
    flow = exec(s.body);
    scope_ = outer;
    any |= flow == Flow::next;
  }
  if (!any && !failed()) exec(s.otherwise);
}

Value Interpreter::call_loop(const Stmt& loop, const std::shared_ptr<Scope>& scope, const Value& items, int depth) {
  Deeper deeper(*this);
  if (!deeper.ok()) return {};
  std::string buffer, *outer;
  begin_capture(buffer, outer);
  std::shared_ptr<Scope> caller = std::exchange(scope_, scope);
  run_loop(loop, items, depth);
  scope_ = std::move(caller);
  return end_capture(buffer, outer);
}

Value Interpreter::call_macro(const Macro& macro, const std::shared_ptr<Scope>& defined_in, Args& args) {
  Deeper deeper(*this);
  if (!deeper.ok() || !charge(4)) return {};
  auto scope = std::make_shared<Scope>();
  scope->parent = defined_in;
  auto take = [&](std::string_view name) -> std::optional<Value> {
    for (size_t i = 0; i < args.named.size(); ++i) {
      if (args.named[i].first != name) continue;
      Value v = std::move(args.named[i].second);
      args.named.erase(args.named.begin() + static_cast<ptrdiff_t>(i));
      return v;
    }
    return std::nullopt;
  };
  size_t count = macro.parameters.size(), first_default = count - macro.defaults.size();
  std::shared_ptr<Scope> outer = std::exchange(scope_, scope);
  for (size_t i = 0; i < count && !failed(); ++i) {
    std::optional<Value> v;
    if (i < args.positional.size()) {
      v = args.positional[i];
    } else if (v = take(macro.parameter_names[i]); !v) {
      v = i >= first_default ? eval(*macro.defaults[i - first_default])
                             : undefined("parameter '" + macro.parameter_names[i] + "' was not provided");
    }
    set(*scope, macro.parameters[i], *std::move(v));
  }
  if (macro.uses_caller && !macro.explicit_caller) {
    auto caller = take("caller");
    set(*scope, template_.caller_id, caller ? *std::move(caller) : undefined("No caller defined"));
  }
  if (macro.uses_kwargs) {
    std::vector<Entry> rest;
    for (auto& [name, v] : args.named) rest.emplace_back(string(name), v);
    set(*scope, template_.kwargs_id, dict(std::move(rest)));
  } else if (!args.named.empty()) {
    error("macro '" + macro.name + "' takes no keyword argument '" + args.named[0].first + "'");
  }
  if (macro.uses_varargs) {
    size_t skip = std::min(count, args.positional.size());
    set(*scope, template_.varargs_id,
        tuple(std::vector<Value>(args.positional.begin() + static_cast<ptrdiff_t>(skip), args.positional.end())));
  } else if (args.positional.size() > count) {
    error("macro '" + macro.name + "' takes not more than " + std::to_string(count) + " argument(s)");
  }
  std::string buffer, *outer_buffer;
  begin_capture(buffer, outer_buffer);
  if (!failed()) exec(macro.body);
  scope_ = std::move(outer);
  return end_capture(buffer, outer_buffer);
}

}  // namespace pinion::jinja
