// One rendering of a template: evaluates its tree under a budget of steps, memory and nesting. The first error is
// remembered and ends the rendering; until it has unwound, operations return undefined and do nothing.
#pragma once

#include <ctime>
#include <deque>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/jinja_ast.h"
#include "text/jinja_value.h"

namespace pinion::jinja {

struct Limits {
  uint64_t steps = 400'000;  // an empty loop iteration is about two; 50 ms at most
  size_t memory = size_t{64} << 20;
  int depth = 220;  // frames of evaluation: with them the interpreter stays inside a 256 KiB stack
};

// Variables of one block: the template, a loop iteration, a macro call. `if` makes none.
struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<uint32_t, Value>> vars;
};

// Reads any iterable item by item. Holds the value it reads.
class Cursor {
 public:
  Cursor() = default;
  explicit Cursor(Value source) : source_(std::move(source)) {}
  bool next(Interpreter& in, Value& out);
  const Value& source() const { return source_; }

 private:
  Value source_;
  size_t at_ = 0;
};

class Interpreter {
 public:
  Interpreter(const Template& source, Limits limits, std::time_t now);
  ~Interpreter();
  void define(std::string_view name, Value value);
  Result<std::string> render();

  // Errors and budgets.
  bool failed() const { return error_.has_value(); }
  Value error(std::string message, Errc code = Errc::invalid_argument);
  Value undefined_error(const Value& v);  // what using an undefined value raises
  bool charge(uint64_t steps) {
    if (steps > steps_) [[unlikely]]
      return out_of_steps();
    steps_ -= steps;
    return !error_;
  }
  // Before building something of `bytes`: room for it, and the work of writing it.
  bool reserve(size_t bytes);
  Memory* memory() { return &memory_; }

  // Construction.
  Value string(std::string text, bool markup = false);
  Value list(std::vector<Value> items) { return sequence(Kind::list, std::move(items)); }
  Value tuple(std::vector<Value> items) { return sequence(Kind::tuple, std::move(items)); }
  Value generator(std::vector<Value> items);
  Value dict(std::vector<Entry> entries);  // checks and merges the keys
  Value undefined(std::string message);
  Value make(Kind kind, std::shared_ptr<Object> object);
  void own(std::shared_ptr<Object> object) { owned_.push_back(std::move(object)); }  // may take part in a cycle

  // Python's operations.
  std::string str(const Value& v);
  std::string repr(const Value& v);
  std::optional<size_t> length(const Value& v);  // nullopt: has none
  bool iterable(const Value& v) const;
  Cursor iterate(const Value& v);
  std::vector<Value> collect(const Value& v);
  Value attribute(const Value& object, std::string_view name);
  Value item(const Value& object, const Value& key);
  Value slice(const Value& object, const Value& start, const Value& stop, const Value& step);
  Value call(const Value& callee, Args& args);
  Value arithmetic(Op op, const Value& a, const Value& b);
  bool compare(Op op, const Value& a, const Value& b);
  bool equals(const Value& a, const Value& b) { return charge(a.weight()) && equal(a, b); }
  bool contains(const Value& container, const Value& item);
  int order(const Value& a, const Value& b);  // -1, 0, 1 by <; fails where Python does; 2 for NaN
  bool check_hashable(const Value& key);

  // For callables.
  Value call_macro(const Macro& macro, const std::shared_ptr<Scope>& scope, Args& args);
  Value call_loop(const Stmt& loop, const std::shared_ptr<Scope>& scope, const Value& items, int depth);
  Value eval(const Expr& e);
  bool assign(const Expr& target, const Value& value, Scope& scope);
  bool filter_accepts(const Stmt& loop, const std::shared_ptr<Scope>& scope, const Value& item);
  std::time_t now() const { return now_; }

 private:
  enum class Flow : uint8_t { next, stop, again };
  // Counts a frame of evaluation for as long as it lives.
  class Deeper {
   public:
    explicit Deeper(Interpreter& in) : in_(in) {
      if (--in_.depth_left_ < 0) in_.error("the template nests or recurses too deeply");
    }
    ~Deeper() { ++in_.depth_left_; }
    Deeper(const Deeper&) = delete;
    bool ok() const { return !in_.failed(); }

   private:
    Interpreter& in_;
  };

  bool out_of_steps();
  Value sequence(Kind kind, std::vector<Value> items);
  void emit(std::string_view text);
  void begin_capture(std::string& buffer, std::string*& outer);
  Value end_capture(std::string& buffer, std::string* outer);

  Flow exec(const Body& body);
  Flow exec(const Stmt& s);
  Flow exec_scoped(const Body& body, std::shared_ptr<Scope> scope);
  Flow exec_condition(const Stmt& s);
  void exec_set_block(const Stmt& s);
  void exec_filter_block(const Stmt& s);
  void exec_call_block(const Stmt& s);
  void exec_with(const Stmt& s);
  void exec_macro(const Stmt& s);
  void run_loop(const Stmt& s, const Value& items, int depth);
  void set(Scope& scope, uint32_t id, Value value);

  Value lookup(uint32_t id);
  Value eval_kids(const Expr& e);
  Value eval_dict(const Expr& e);
  Value eval_item(const Expr& e);
  Value eval_call(const Expr& e);
  Value eval_filter(const Expr& e, const Value* input);
  Value eval_chain(const Expr* e, const Value& input);
  Value eval_test(const Expr& e);
  Value eval_arithmetic(const Expr& e);
  Value eval_concat(const Expr& e);
  Value eval_compare(const Expr& e);
  Value eval_sign(const Expr& e);
  void eval_arguments(const Arguments* source, Args& args);
  Value multiply(const Value& a, const Value& b);
  Value number_op(Op op, const Value& a, const Value& b);

  const Template& template_;
  Memory memory_;
  uint64_t steps_;
  int depth_left_;
  std::time_t now_;
  uint32_t line_ = 1;
  std::optional<Error> error_;
  std::vector<std::pair<bool, Value>> root_;  // by name id: defined, value
  std::shared_ptr<Scope> scope_;
  std::string output_;
  std::string* out_ = &output_;
  std::vector<std::shared_ptr<Object>> owned_;
};

// The arguments of a builtin, bound to its parameters' names; a wrong count or an unknown name is the template's error.
class Params {
 public:
  Params(Interpreter& in, const Args& args, std::string_view callee, std::initializer_list<std::string_view> names,
         size_t required = 0);
  bool ok() const { return ok_; }
  bool has(size_t i) const { return bound_[i] != nullptr; }
  const Value& operator[](size_t i) const { return *bound_[i]; }
  Value value(size_t i, Value fallback) const { return bound_[i] ? *bound_[i] : std::move(fallback); }
  bool flag(size_t i, bool fallback) const { return bound_[i] ? truthy(*bound_[i]) : fallback; }
  int64_t integer(size_t i, int64_t fallback);  // fails on another type
  std::string text(size_t i, std::string_view fallback);

 private:
  static constexpr size_t kMax = 6;
  Interpreter& in_;
  std::string_view callee_;
  const Value* bound_[kMax] = {};
  bool ok_ = true;
};

// jinja_methods.cc: the methods of str, list and dict.
struct MethodEntry {
  std::string_view name;
  Value (*run)(Interpreter&, const Value& self, const Args&);  // null: changes its object, which the sandbox refuses
};
const MethodEntry* find_method(const Value& self, std::string_view name);
Value bind_method(Interpreter& in, const Value& self, const MethodEntry& method);

// jinja_globals.cc: range, namespace, dict, cycler, joiner, raise_exception, strftime_now. Undefined when there is
// none.
Value find_global(Interpreter& in, std::string_view name);

}  // namespace pinion::jinja
