// The global functions: Jinja's range, namespace, dict, cycler and joiner, and Hugging Face's raise_exception and
// strftime_now.
#include <algorithm>
#include <ctime>

#include "text/jinja_interpreter.h"

namespace pinion::jinja {
namespace {

constexpr uint64_t kMaxRange = 100000;  // MAX_RANGE of Jinja's sandbox

struct Function final : Callable {
  using Run = Value (*)(Interpreter&, Args&);
  Function(std::string_view n, Run r, Memory* memory) : Callable(memory), name(n), run(r) {}
  Value call(Interpreter& in, Args& args) override { return run(in, args); }
  std::string repr() const override { return "<function " + std::string(name) + ">"; }
  std::string_view name;
  Run run;
};

Value range(Interpreter& in, Args& args) {
  size_t n = args.positional.size();
  if (!args.named.empty() || n < 1 || n > 3) return in.error("range expected 1 to 3 arguments");
  int64_t v[3] = {0, 0, 1};
  for (size_t i = 0; i < n; ++i) {
    const Value& a = args.positional[i];
    if (a.is_undefined()) return in.undefined_error(a);
    if (!a.is_int()) return in.error("'" + std::string(type_name(a)) + "' object cannot be interpreted as an integer");
    v[i] = a.as_int();
  }
  if (n == 1) std::swap(v[0], v[1]);
  if (v[2] == 0) return in.error("range() arg 3 must not be zero");
  // Unsigned: the distance between two 64-bit numbers does not fit in a signed one.
  bool up = v[2] > 0;
  auto low = static_cast<uint64_t>(up ? v[0] : v[1]), high = static_cast<uint64_t>(up ? v[1] : v[0]);
  uint64_t step = up ? static_cast<uint64_t>(v[2]) : 0 - static_cast<uint64_t>(v[2]);
  uint64_t size = (up ? v[0] < v[1] : v[1] < v[0]) ? (high - low - 1) / step + 1 : 0;
  if (size > kMaxRange) {
    return in.error("Range too big. The sandbox blocks ranges larger than MAX_RANGE (" + std::to_string(kMaxRange) +
                    ").");
  }
  auto count = static_cast<int64_t>(size);
  return in.make(Kind::range, std::make_shared<Range>(v[0], count, count > 0 ? v[2] : 1, in.memory()));
}

Value dict(Interpreter& in, Args& args) {
  std::vector<Entry> entries;
  if (args.positional.size() > 1) return in.error("dict expected at most 1 argument");
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    if (source.is(Kind::dict)) {
      entries = source.as<Dict>().entries;
    } else {
      for (const Value& pair : in.collect(source)) {
        std::vector<Value> parts = in.collect(pair);
        if (!in.failed() && parts.size() != 2) return in.error("dictionary update sequence element is no pair");
        if (in.failed()) return {};
        entries.emplace_back(parts[0], parts[1]);
      }
    }
  }
  for (auto& [name, value] : args.named) entries.emplace_back(in.string(name), value);
  return in.dict(std::move(entries));
}

Value namespace_(Interpreter& in, Args& args) {
  Value initial = dict(in, args);
  if (in.failed()) return {};
  auto space = std::make_shared<Namespace>(in.memory());
  for (const auto& [key, value] : initial.as<Dict>().entries) {
    if (!key.is_string()) return in.error("namespace attributes must be strings");
    space->vars.emplace_back(key.text(), value);
  }
  in.own(space);
  return in.make(Kind::space, space);
}

struct CyclerStep final : Callable {
  CyclerStep(std::shared_ptr<struct Cycler> c, bool r, Memory* memory);
  Value call(Interpreter& in, Args& args) override;
  std::string repr() const override { return "<bound method Cycler.next>"; }
  std::shared_ptr<Cycler> cycler;
  bool reset;
};

struct Cycler final : Callable, std::enable_shared_from_this<Cycler> {
  Cycler(std::vector<Value> v, Memory* memory) : Callable(memory, v.size() * sizeof(Value)), items(std::move(v)) {
    for (const Value& item : items) depth = std::max(depth, item.depth() + 1);
  }
  Value call(Interpreter& in, Args&) override { return in.error("'Cycler' object is not callable"); }
  Value attribute(Interpreter& in, std::string_view name, bool& found) override {
    found = name == "current" || name == "next" || name == "reset" || name == "pos";
    if (name == "current") return items[at];
    if (name == "pos") return Value::integer(static_cast<int64_t>(at));
    if (!found) return {};
    return in.make(Kind::callable, std::make_shared<CyclerStep>(shared_from_this(), name == "reset", in.memory()));
  }
  std::string repr() const override { return "<Cycler>"; }
  std::string_view type_name() const override { return "Cycler"; }
  std::vector<Value> items;
  size_t at = 0;
};

CyclerStep::CyclerStep(std::shared_ptr<Cycler> c, bool r, Memory* memory)
    : Callable(memory), cycler(std::move(c)), reset(r) {
  depth = cycler->depth + 1;
}

Value CyclerStep::call(Interpreter&, Args&) {
  if (reset) {
    cycler->at = 0;
    return Value::none();
  }
  Value now = cycler->items[cycler->at];
  cycler->at = (cycler->at + 1) % cycler->items.size();
  return now;
}

Value cycler(Interpreter& in, Args& args) {
  if (args.positional.empty() || !args.named.empty()) return in.error("at least one item has to be provided");
  return in.make(Kind::callable, std::make_shared<Cycler>(std::move(args.positional), in.memory()));
}

struct Joiner final : Callable {
  Joiner(Value s, Memory* memory) : Callable(memory), separator(std::move(s)) {}
  Value call(Interpreter& in, Args&) override {
    if (std::exchange(used, true)) return separator;
    return in.string("");
  }
  std::string repr() const override { return "<Joiner>"; }
  std::string_view type_name() const override { return "Joiner"; }
  Value separator;
  bool used = false;
};

Value joiner(Interpreter& in, Args& args) {
  Params p(in, args, "joiner", {"sep"});
  if (!p.ok()) return {};
  Value separator = p.value(0, in.string(", "));
  if (!separator.is_string()) return in.error("a joiner's separator must be a string");
  return in.make(Kind::callable, std::make_shared<Joiner>(std::move(separator), in.memory()));
}

Value raise_exception(Interpreter& in, Args& args) {
  Params p(in, args, "raise_exception", {"message"}, 1);
  return p.ok() ? in.error(p.text(0, "")) : Value();
}

Value strftime_now(Interpreter& in, Args& args) {
  Params p(in, args, "strftime_now", {"format"}, 1);
  if (!p.ok()) return {};
  std::string format = p.text(0, "");
  std::time_t now = in.now();
  std::tm local{};
  localtime_r(&now, &local);
  char buffer[1024];
  if (format.empty()) return in.string("");
  size_t n = std::strftime(buffer, sizeof buffer, format.c_str(), &local);
  if (n == 0) return in.error("strftime_now: the result is empty or longer than 1023 bytes");
  return in.string(std::string(buffer, n));
}

Value lipsum(Interpreter& in, Args&) {
  return in.error("lipsum() makes random text and is not available in chat templates", Errc::unsupported);
}

constexpr struct {
  std::string_view name;
  Function::Run run;
} kGlobals[] = {
    {"range", range},
    {"dict", dict},
    {"namespace", namespace_},
    {"cycler", cycler},
    {"joiner", joiner},
    {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
    {"lipsum", lipsum},
};

}  // namespace

Value find_global(Interpreter& in, std::string_view name) {
  for (const auto& global : kGlobals) {
    if (global.name == name) {
      return Value::object(Kind::callable, std::make_shared<Function>(global.name, global.run, in.memory()));
    }
  }
  return {};
}

}  // namespace pinion::jinja
