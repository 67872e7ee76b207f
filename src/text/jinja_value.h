// The values a Jinja template computes with, with Python's semantics: immutable, cheap to copy, heap parts shared and
// counted against the rendering's memory. Every heap part knows its nesting depth (bounded, so that recursion over it
// is) and its weight, the work of walking it whole (so that a shared, exponentially large structure is refused first).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pinion::jinja {

class Interpreter;
struct Object;

enum class Kind : uint8_t {
  undefined,  // payload: Text with the error to raise when it is used, or none
  none,
  boolean,
  integer,
  real,
  string,     // Text
  list,       // Items
  tuple,      // Items
  dict,       // Dict
  view,       // View: dict.keys(), .values(), .items()
  range,      // Range
  generator,  // Generator: what lazy filters return; consumed once
  space,      // Namespace
  callable,   // Callable
};

// Bytes held by one rendering. Parsed templates use none: their constants are bounded by the source.
struct Memory {
  size_t live = 0;
  size_t limit = 0;
};

constexpr int kMaxValueDepth = 100;

struct Object {
  Object(Memory* memory, size_t bytes) : memory_(memory), bytes_(bytes + 64) {
    if (memory_) memory_->live += bytes_;
  }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  // Drops what it refers to; how cycles through namespaces and closures are broken at the end of a rendering.
  virtual void release() {}
  virtual ~Object() {
    if (memory_) memory_->live -= bytes_;
  }

  int depth = 1;
  uint64_t weight = 1;

 private:
  Memory* memory_;
  size_t bytes_;
};

class Value {
 public:
  Value() : kind_(Kind::undefined) { bits_.integer = 0; }
  static Value none() { return Value(Kind::none); }
  static Value boolean(bool b) {
    Value v(Kind::boolean);
    v.bits_.integer = b;
    return v;
  }
  static Value integer(int64_t i) {
    Value v(Kind::integer);
    v.bits_.integer = i;
    return v;
  }
  static Value real(double d) {
    Value v(Kind::real);
    v.bits_.real = d;
    return v;
  }
  static Value string(std::string text, Memory* memory = nullptr, bool markup = false);
  static Value object(Kind kind, std::shared_ptr<Object> object) {
    Value v(kind);
    v.object_ = std::move(object);
    return v;
  }

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_undefined() const { return kind_ == Kind::undefined; }
  bool is_none() const { return kind_ == Kind::none; }
  bool is_string() const { return kind_ == Kind::string; }
  bool is_sequence() const { return kind_ == Kind::list || kind_ == Kind::tuple; }
  bool is_int() const { return kind_ == Kind::integer || kind_ == Kind::boolean; }  // Python's bool is an int
  bool is_number() const { return is_int() || kind_ == Kind::real; }
  bool markup() const { return markup_; }  // a string marked safe: + and % escape what they join to it
  Value with_markup(bool on) const {
    Value v = *this;
    v.markup_ = on && is_string();
    return v;
  }

  bool as_bool() const { return bits_.integer != 0; }
  int64_t as_int() const { return bits_.integer; }  // integer or boolean
  double as_real() const { return kind_ == Kind::real ? bits_.real : static_cast<double>(bits_.integer); }
  const std::string& text() const;          // string
  size_t points() const;                    // string: its length in code points
  const std::vector<Value>& items() const;  // list or tuple
  Object* get() const { return object_.get(); }
  template <class T>
  T& as() const {
    return static_cast<T&>(*object_);
  }

  int depth() const { return object_ ? object_->depth : 0; }
  uint64_t weight() const { return object_ ? object_->weight : 1; }

 private:
  explicit Value(Kind kind) : kind_(kind) { bits_.integer = 0; }

  Kind kind_;
  bool markup_ = false;
  union {
    int64_t integer;
    double real;
  } bits_;
  std::shared_ptr<Object> object_;
};

using Entry = std::pair<Value, Value>;

struct Text : Object {
  Text(std::string t, Memory* memory);
  std::string text;
  size_t points;
};

struct Items : Object {
  Items(std::vector<Value> v, Memory* memory);
  std::vector<Value> items;
  bool group = false;  // groupby's tuple: its parts are also .grouper and .list
};

// Keys are unique and keep their first insertion's place. Large dicts find keys through a sorted index, which no choice
// of keys can slow down.
struct Dict : Object {
  Dict(std::vector<Entry> e, Memory* memory);  // entries are unique already
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  std::vector<Entry> entries;

 private:
  std::vector<uint32_t> sorted_;
};

struct View : Object {
  enum class Part { keys, values, items };
  View(Value d, Part p, Memory* memory);
  Value dict;
  Part part;
};

struct Range : Object {
  Range(int64_t a, int64_t n, int64_t s, Memory* memory) : Object(memory, 0), start(a), size(n), step(s) {
    weight = 1 + static_cast<uint64_t>(n);
  }
  int64_t at(int64_t i) const { return start + i * step; }
  int64_t start, size, step;
};

struct Generator : Object {
  Generator(std::vector<Value> v, Memory* memory);
  std::vector<Value> items;
  size_t next = 0;
};

struct Namespace : Object {
  explicit Namespace(Memory* memory) : Object(memory, 0) {}
  Value* find(std::string_view name);
  void release() override { vars.clear(); }
  std::vector<std::pair<std::string, Value>> vars;
};

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Callable : Object {
  explicit Callable(Memory* memory, size_t bytes = 0) : Object(memory, bytes) {}
  virtual Value call(Interpreter& in, Args& args) = 0;
  virtual Value attribute(Interpreter&, std::string_view, bool& found) {
    found = false;
    return {};
  }
  virtual std::string repr() const = 0;
  virtual std::string_view type_name() const { return "function"; }
  virtual bool equal_text(std::string_view) const { return false; }
};

bool truthy(const Value& v);
// Python's ==. The caller has charged the weights.
bool equal(const Value& a, const Value& b);
// A total order over hashable values that agrees with ==, for dict keys and unique().
int key_order(const Value& a, const Value& b);
bool hashable(const Value& v);
// Exact comparison of two numbers: -1, 0, 1; 2 when one is NaN.
int compare_numbers(const Value& a, const Value& b);

// Python's str() and repr().
std::string real_repr(double d);
void append_repr(std::string& out, const Value& v);
void append_str(std::string& out, const Value& v);
std::string_view type_name(const Value& v);  // "str", "list", "NoneType", …
std::string object_name(const Value& v);     // "list object", "None": as in Jinja's undefined messages

// Later entries win, the first one's place is kept.
std::vector<Entry> unique_entries(std::vector<Entry> entries);

}  // namespace pinion::jinja
