// The `loop` variable: a look-ahead iterator over a for statement's items, filtered on the way, and callable when the
// statement is recursive.
#pragma once

#include <deque>

#include "text/jinja_interpreter.h"

namespace pinion::jinja {

struct LoopValue final : Callable, std::enable_shared_from_this<LoopValue> {
  // `scope`: where the filter and a recursive call are evaluated; null when the statement has neither.
  LoopValue(const Stmt& s, std::shared_ptr<Scope> outer, Cursor c, int depth, Memory* memory);
  bool advance(Interpreter& in);  // moves to the next item, which is then `current`
  Value call(Interpreter& in, Args& args) override;
  Value attribute(Interpreter& in, std::string_view name, bool& found) override;
  std::string repr() const override;
  std::string_view type_name() const override { return "LoopContext"; }
  void release() override {
    scope.reset();
    changed_ = {};
  }

  const Stmt& stmt;
  std::shared_ptr<Scope> scope;
  Value current;

 private:
  friend struct LoopMethod;
  bool pull(Interpreter& in, Value& out);
  bool peek(Interpreter& in);
  int64_t length(Interpreter& in);

  Cursor cursor_;
  std::deque<Value> ahead_;
  Value previous_, changed_;
  bool has_changed_ = false;
  int64_t index0_ = -1;
  int depth0_;
};

}  // namespace pinion::jinja
