// The parser's state and methods, shared by its two source files; nothing else includes this.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace pinion::jinja {

class Parser {
 public:
  explicit Parser(std::vector<Lexeme> tokens);
  Result<Template> run();

 private:
  // Blocks and brackets open at once, and the height of an expression: with these the parser, the interpreter and the
  // tree's destructor stay well inside a 256 KiB stack.
  static constexpr int kMaxNesting = 60;
  static constexpr int kMaxHeight = 100;

  const Lexeme& now() const { return tokens_[at_]; }
  bool failed() const { return error_.has_value(); }
  void fail_at(uint32_t line, std::string what, Errc code = Errc::corrupt);
  void fail_here(std::string what, Errc code = Errc::corrupt) { fail_at(now().line, std::move(what), code); }
  uint32_t id(std::string_view name);

  bool is_name(std::string_view name) const;
  bool is_op(std::string_view op) const;
  bool skip_name(std::string_view name);
  bool skip_op(std::string_view op);
  void expect_op(std::string_view op);
  void expect_name(std::string_view name);
  void expect(Token token, std::string_view what);
  std::string take_name();
  static std::string describe(const Lexeme& t);
  bool at_stop(std::initializer_list<std::string_view> stops) const;

  Body body(std::initializer_list<std::string_view> stops);
  void close(std::string_view name);
  std::unique_ptr<Stmt> statement_node(StmtKind kind, uint32_t line);
  std::unique_ptr<Stmt> statement();
  std::unique_ptr<Stmt> parse_if(uint32_t line);
  std::unique_ptr<Stmt> parse_for(uint32_t line);
  std::unique_ptr<Stmt> parse_set(uint32_t line);
  std::unique_ptr<Stmt> parse_macro(uint32_t line);
  std::unique_ptr<Stmt> parse_call_block(uint32_t line);
  std::unique_ptr<Stmt> parse_with(uint32_t line);
  void signature(Macro& macro);
  void function_body(Macro& macro, std::string_view end);

  ExprPtr node(ExprKind kind, uint32_t line) const;
  ExprPtr wrap(ExprKind kind, uint32_t line, ExprPtr kid);
  ExprPtr measured(ExprPtr e);
  ExprPtr expression(bool with_conditional = true);
  ExprPtr disjunction();
  ExprPtr conjunction();
  ExprPtr negation();
  ExprPtr comparison();
  ExprPtr arithmetic(int level);
  ExprPtr concatenation();
  ExprPtr unary(bool with_filter = true);
  ExprPtr primary();
  ExprPtr name_expression();
  ExprPtr number();
  ExprPtr brackets();
  ExprPtr postfix(ExprPtr e);
  ExprPtr filters_and_tests(ExprPtr e);
  ExprPtr filter_chain(ExprPtr e, bool first);
  ExprPtr test(ExprPtr e);
  ExprPtr subscript(ExprPtr e);
  ExprPtr subscribed();
  ExprPtr call(ExprPtr e);
  std::unique_ptr<Arguments> arguments();
  // A comma makes a tuple; without one, the expression itself. `ends` are names that may follow a trailing comma.
  ExprPtr tuple(std::initializer_list<std::string_view> ends, bool with_conditional = true, bool parentheses = false,
                bool simple = false);
  bool tuple_end(std::initializer_list<std::string_view> ends) const;
  ExprPtr assign_target(bool with_attribute, bool with_tuple);
  bool assignable(const Expr& e);

  std::vector<Lexeme> tokens_;
  size_t at_ = 0;
  std::optional<Error> error_;
  std::optional<Error> unknown_;  // a filter or test that does not exist; forgiven when an inline if guards it
  Template out_;
  std::unordered_map<std::string, uint32_t> ids_;
  int nesting_ = 0;
  int loops_ = 0;
  int conditional_ = 0;  // inside if: unknown filters fail only when reached
  bool uses_loop_ = false;
  Macro* macro_ = nullptr;
};

}  // namespace pinion::jinja
