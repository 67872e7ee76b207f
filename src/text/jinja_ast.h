// The syntax tree of a template. Chains of operators are flat lists, names are numbered, filters and tests are bound at
// parse time; the parser bounds the height, so walking and destroying the tree needs bounded stack.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace pinion::jinja {

struct FilterEntry;
struct TestEntry;
struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using Body = std::vector<std::unique_ptr<Stmt>>;

enum class Op : uint8_t {
  add,
  subtract,
  concat,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  eq,
  ne,
  lt,
  le,
  gt,
  ge,
  in,
  not_in,
};

enum class ExprKind : uint8_t {
  constant,   // value
  name,       // id
  list,       // kids
  tuple,      // kids; also an assignment target
  dict,       // kids: key, value, key, value, …
  attribute,  // kids[0].text
  item,       // kids[0][kids[1]]
  slice,      // kids: start, stop, step; each may be null
  call,       // kids[0](arguments)
  filter,     // kids[0] | text(arguments); kids[0] is null inside a filter block
  test,       // kids[0] is text(arguments)
  negate,
  plus,
  logic_not,
  logic_and,         // kids
  logic_or,          // kids
  compare,           // kids[0] ops[0] kids[1] ops[1] kids[2] …
  arithmetic,        // the same, left to right
  concat,            // kids
  conditional,       // kids: then, condition, else or null
  attribute_target,  // set ns.attr: id, text
};

struct Arguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star, star_star;
};

struct Expr {
  ExprKind kind = ExprKind::constant;
  uint32_t line = 0;
  uint32_t id = 0;
  int height = 1;
  Value value;
  std::string text;
  std::vector<ExprPtr> kids;
  std::vector<Op> ops;
  std::unique_ptr<Arguments> arguments;
  const FilterEntry* filter = nullptr;
  const TestEntry* test = nullptr;
};

enum class StmtKind : uint8_t {
  text,
  print,         // expr
  condition,     // branches, otherwise
  loop,          // target in expr [if filter]: body, otherwise
  set,           // target = expr
  set_block,     // target, body, expr: filter chain or null
  macro,         // text: its name; macro
  call_block,    // expr: the call; macro: the body as caller()
  filter_block,  // expr: filter chain, body
  scope,         // body in its own scope: generation
  with,          // names: target and expr pairs in branches; body
  break_loop,
  continue_loop,
};

struct Macro {
  std::string name;
  std::vector<uint32_t> parameters;
  std::vector<std::string> parameter_names;
  std::vector<ExprPtr> defaults;  // of the last parameters
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
  bool explicit_caller = false;
  Body body;
};

struct Stmt {
  StmtKind kind = StmtKind::text;
  uint32_t line = 0;
  uint32_t id = 0;
  std::string text;
  ExprPtr expr, target, filter;
  std::vector<std::pair<ExprPtr, Body>> branches;
  Body body, otherwise;
  bool recursive = false, uses_loop = false;
  std::unique_ptr<Macro> macro;
};

struct Template {
  std::vector<std::string> names;
  uint32_t loop_id = 0, caller_id = 0, varargs_id = 0, kwargs_id = 0;
  Body body;
};

}  // namespace pinion::jinja
