// Look-ahead is one item for last and nextitem, and the rest of the items for length and its kin.
#include "text/jinja_loop.h"

namespace pinion::jinja {

// loop.cycle and loop.changed.
struct LoopMethod final : Callable {
  LoopMethod(Value l, bool c, Memory* memory) : Callable(memory), loop(std::move(l)), cycle(c) {
    depth = loop.depth() + 1;
  }
  Value call(Interpreter& in, Args& args) override {
    LoopValue& state = loop.as<LoopValue>();
    auto& items = args.positional;
    if (!args.named.empty()) return in.error("loop methods take no keyword arguments");
    if (cycle) {
      if (items.empty()) return in.error("no items for cycling given");
      return items[static_cast<size_t>(state.index0_) % items.size()];
    }
    Value now = in.tuple(items);
    if (in.failed() || (state.has_changed_ && in.equals(state.changed_, now))) return Value::boolean(false);
    if (!state.has_changed_) in.own(state.shared_from_this());  // what it remembers may refer to the loop
    state.changed_ = std::move(now);
    state.has_changed_ = true;
    return Value::boolean(true);
  }
  std::string repr() const override { return cycle ? "<loop.cycle>" : "<loop.changed>"; }
  std::string_view type_name() const override { return "method"; }
  Value loop;
  bool cycle;
};

LoopValue::LoopValue(const Stmt& s, std::shared_ptr<Scope> outer, Cursor c, int depth0, Memory* memory)
    : Callable(memory, 160), stmt(s), scope(std::move(outer)), cursor_(std::move(c)), depth0_(depth0) {
  depth = cursor_.source().depth() + 1;
}

bool LoopValue::pull(Interpreter& in, Value& out) {
  while (!in.failed() && cursor_.next(in, out)) {
    if (!in.charge(1)) return false;
    if (!stmt.filter) return true;
    if (in.filter_accepts(stmt, scope, out)) return !in.failed();
  }
  return false;
}

bool LoopValue::peek(Interpreter& in) {
  if (!ahead_.empty()) return true;
  Value v;
  if (!pull(in, v)) return false;
  ahead_.push_back(std::move(v));
  return true;
}

bool LoopValue::advance(Interpreter& in) {
  if (!peek(in)) return false;
  previous_ = std::exchange(current, std::move(ahead_.front()));
  ahead_.pop_front();
  ++index0_;
  return !in.failed();
}

int64_t LoopValue::length(Interpreter& in) {
  Value v;
  while (pull(in, v) && in.reserve(ahead_.size() * sizeof(Value) / 16)) ahead_.push_back(std::move(v));
  return index0_ + 1 + static_cast<int64_t>(ahead_.size());
}

Value LoopValue::call(Interpreter& in, Args& args) {
  if (!stmt.recursive) {
    return in.error("The loop must have the 'recursive' marker to be called recursively.");
  }
  if (args.positional.size() != 1 || !args.named.empty()) return in.error("loop() takes one argument");
  return in.call_loop(stmt, scope, args.positional[0], depth0_ + 1);
}

Value LoopValue::attribute(Interpreter& in, std::string_view name, bool& found) {
  found = true;
  if (name == "index") return Value::integer(index0_ + 1);
  if (name == "index0") return Value::integer(index0_);
  if (name == "first") return Value::boolean(index0_ == 0);
  if (name == "last") return Value::boolean(!peek(in));
  if (name == "length") return Value::integer(length(in));
  if (name == "revindex") return Value::integer(length(in) - index0_);
  if (name == "revindex0") return Value::integer(length(in) - index0_ - 1);
  if (name == "depth") return Value::integer(depth0_ + 1);
  if (name == "depth0") return Value::integer(depth0_);
  if (name == "previtem") return index0_ == 0 ? in.undefined("there is no previous item") : previous_;
  if (name == "nextitem") return peek(in) ? ahead_.front() : in.undefined("there is no next item");
  if (name == "cycle" || name == "changed") {
    Value self = Value::object(Kind::callable, shared_from_this());
    return in.make(Kind::callable, std::make_shared<LoopMethod>(std::move(self), name == "cycle", in.memory()));
  }
  found = false;
  return {};
}

std::string LoopValue::repr() const {
  return "<LoopContext " + std::to_string(index0_ + 1) + ">";
}

}  // namespace pinion::jinja
