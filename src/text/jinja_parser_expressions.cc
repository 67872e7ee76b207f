// Expressions, from the conditional down to literals; see the grammar in Jinja's own parser for the precedences
// (notably: ~ binds tighter than +, ** associates to the left, filters bind tighter than unary minus's operand).
#include <algorithm>
#include <charconv>

#include "text/jinja_filters.h"
#include "text/jinja_parser_state.h"

namespace pinion::jinja {
namespace {

void note_height(Expr& e, const ExprPtr& kid) {
  if (kid) e.height = std::max(e.height, kid->height + 1);
}

}  // namespace

ExprPtr Parser::node(ExprKind kind, uint32_t line) const {
  auto e = std::make_unique<Expr>();
  e->kind = kind;
  e->line = line;
  return e;
}

ExprPtr Parser::wrap(ExprKind kind, uint32_t line, ExprPtr kid) {
  auto e = node(kind, line);
  e->kids.push_back(std::move(kid));
  return measured(std::move(e));
}

ExprPtr Parser::measured(ExprPtr e) {
  for (const ExprPtr& kid : e->kids) note_height(*e, kid);
  if (e->arguments) {
    for (const ExprPtr& a : e->arguments->positional) note_height(*e, a);
    for (const auto& a : e->arguments->named) note_height(*e, a.second);
    note_height(*e, e->arguments->star);
    note_height(*e, e->arguments->star_star);
  }
  if (e->height > kMaxHeight) fail_at(e->line, "an expression is nested too deeply", Errc::unsupported);
  return e;
}

ExprPtr Parser::expression(bool with_conditional) {
  if (++nesting_ > kMaxNesting) fail_here("expressions are nested too deeply", Errc::unsupported);
  uint32_t line = now().line;
  std::optional<Error> unknown_before = unknown_;
  ExprPtr e = disjunction();
  while (with_conditional && skip_name("if")) {
    unknown_ = unknown_before;
    auto c = node(ExprKind::conditional, line);
    ++conditional_;
    c->kids.push_back(std::move(e));
    c->kids.push_back(disjunction());
    c->kids.push_back(skip_name("else") ? expression() : nullptr);
    --conditional_;
    e = measured(std::move(c));
  }
  --nesting_;
  return e;
}

ExprPtr Parser::disjunction() {
  uint32_t line = now().line;
  ExprPtr e = conjunction();
  if (!is_name("or")) return e;
  auto all = node(ExprKind::logic_or, line);
  all->kids.push_back(std::move(e));
  while (skip_name("or")) all->kids.push_back(conjunction());
  return measured(std::move(all));
}

ExprPtr Parser::conjunction() {
  uint32_t line = now().line;
  ExprPtr e = negation();
  if (!is_name("and")) return e;
  auto all = node(ExprKind::logic_and, line);
  all->kids.push_back(std::move(e));
  while (skip_name("and")) all->kids.push_back(negation());
  return measured(std::move(all));
}

ExprPtr Parser::negation() {
  uint32_t line = now().line;
  if (!skip_name("not")) return comparison();
  if (++nesting_ > kMaxNesting) fail_here("expressions are nested too deeply", Errc::unsupported);
  ExprPtr e = wrap(ExprKind::logic_not, line, negation());
  --nesting_;
  return e;
}

ExprPtr Parser::comparison() {
  uint32_t line = now().line;
  ExprPtr first = arithmetic(0);
  ExprPtr e;
  while (true) {
    Op op;
    if (skip_op("==")) {
      op = Op::eq;
    } else if (skip_op("!=")) {
      op = Op::ne;
    } else if (skip_op("<=")) {
      op = Op::le;
    } else if (skip_op("<")) {
      op = Op::lt;
    } else if (skip_op(">=")) {
      op = Op::ge;
    } else if (skip_op(">")) {
      op = Op::gt;
    } else if (skip_name("in")) {
      op = Op::in;
    } else if (is_name("not") && tokens_[at_ + 1].token == Token::name && tokens_[at_ + 1].text == "in") {
      at_ += 2;
      op = Op::not_in;
    } else {
      break;
    }
    if (!e) {
      e = node(ExprKind::compare, line);
      e->kids.push_back(std::move(first));
    }
    e->ops.push_back(op);
    e->kids.push_back(arithmetic(0));
  }
  return e ? measured(std::move(e)) : std::move(first);
}

// Level 0: + -, then ~; level 1: * / // %; level 2: **.
ExprPtr Parser::arithmetic(int level) {
  uint32_t line = now().line;
  auto operand = [&] { return level == 0 ? concatenation() : level == 1 ? arithmetic(2) : unary(); };
  auto next = [&]() -> std::optional<Op> {
    if (level == 0) {
      if (skip_op("+")) return Op::add;
      if (skip_op("-")) return Op::subtract;
    } else if (level == 1) {
      if (skip_op("*")) return Op::multiply;
      if (skip_op("//")) return Op::floor_divide;
      if (skip_op("/")) return Op::divide;
      if (skip_op("%")) return Op::modulo;
    } else if (skip_op("**")) {
      return Op::power;
    }
    return std::nullopt;
  };
  ExprPtr first = operand();
  ExprPtr e;
  while (auto op = next()) {
    if (!e) {
      e = node(ExprKind::arithmetic, line);
      e->kids.push_back(std::move(first));
    }
    e->ops.push_back(*op);
    e->kids.push_back(operand());
  }
  return e ? measured(std::move(e)) : std::move(first);
}

ExprPtr Parser::concatenation() {
  uint32_t line = now().line;
  ExprPtr first = arithmetic(1);
  if (!is_op("~")) return first;
  auto e = node(ExprKind::concat, line);
  e->kids.push_back(std::move(first));
  while (skip_op("~")) e->kids.push_back(arithmetic(1));
  return measured(std::move(e));
}

ExprPtr Parser::unary(bool with_filter) {
  uint32_t line = now().line;
  ExprPtr e;
  if (is_op("-") || is_op("+")) {
    ExprKind kind = is_op("-") ? ExprKind::negate : ExprKind::plus;
    ++at_;
    if (++nesting_ > kMaxNesting) fail_here("expressions are nested too deeply", Errc::unsupported);
    e = wrap(kind, line, unary(false));
    --nesting_;
  } else {
    e = primary();
  }
  e = postfix(std::move(e));
  return with_filter ? filters_and_tests(std::move(e)) : std::move(e);
}

ExprPtr Parser::primary() {
  const Lexeme& t = now();
  switch (t.token) {
    case Token::name:
      return name_expression();
    case Token::integer:
    case Token::real:
      return number();
    case Token::string: {
      auto e = node(ExprKind::constant, t.line);
      std::string text;
      while (now().token == Token::string) text += tokens_[at_++].text;
      e->value = Value::string(std::move(text));
      return e;
    }
    case Token::op:
      if (t.text == "(" || t.text == "[" || t.text == "{") return brackets();
      [[fallthrough]];
    default:
      break;
  }
  uint32_t line = t.line;
  fail_here("unexpected " + describe(t));
  return node(ExprKind::constant, line);
}

ExprPtr Parser::name_expression() {
  auto e = node(ExprKind::constant, now().line);
  const std::string& name = tokens_[at_++].text;
  if (name == "true" || name == "True") {
    e->value = Value::boolean(true);
  } else if (name == "false" || name == "False") {
    e->value = Value::boolean(false);
  } else if (name == "none" || name == "None") {
    e->value = Value::none();
  } else {
    e->kind = ExprKind::name;
    e->id = id(name);
    if (name == "loop") uses_loop_ = true;
    if (macro_) {
      if (name == "caller") macro_->uses_caller = true;
      if (name == "varargs") macro_->uses_varargs = true;
      if (name == "kwargs") macro_->uses_kwargs = true;
    }
  }
  return e;
}

ExprPtr Parser::number() {
  const Lexeme& t = tokens_[at_++];
  auto e = node(ExprKind::constant, t.line);
  std::string_view text = t.text;
  if (t.token == Token::real) {
    double d = 0;
    std::from_chars(text.data(), text.data() + text.size(), d);
    // from_chars leaves d alone out of range; Python reads inf or 0 there.
    e->value = Value::real(text.find("e-") == std::string_view::npos && d == 0 &&
                                   text.find_first_of("123456789") < text.find('e')
                               ? std::stod("inf")
                               : d);
    return e;
  }
  int base = 10;
  if (text.size() > 2 && text[0] == '0' && text[1] > '9') {
    base = text[1] == 'x' ? 16 : text[1] == 'o' ? 8 : 2;
    text.remove_prefix(2);
  }
  int64_t i = 0;
  auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), i, base);
  (void)end;
  if (ec != std::errc()) fail_at(t.line, "integers beyond 64 bits are not implemented", Errc::unsupported);
  e->value = Value::integer(i);
  return e;
}

ExprPtr Parser::brackets() {
  uint32_t line = now().line;
  if (skip_op("(")) {
    ExprPtr e = tuple({}, true, true);
    expect_op(")");
    return e;
  }
  if (skip_op("[")) {
    auto e = node(ExprKind::list, line);
    while (!is_op("]") && !failed()) {
      if (!e->kids.empty()) expect_op(",");
      if (is_op("]")) break;
      e->kids.push_back(expression());
    }
    expect_op("]");
    return measured(std::move(e));
  }
  expect_op("{");
  auto e = node(ExprKind::dict, line);
  while (!is_op("}") && !failed()) {
    if (!e->kids.empty()) expect_op(",");
    if (is_op("}")) break;
    e->kids.push_back(expression());
    expect_op(":");
    e->kids.push_back(expression());
  }
  expect_op("}");
  return measured(std::move(e));
}

ExprPtr Parser::postfix(ExprPtr e) {
  while (!failed()) {
    if (is_op(".") || is_op("[")) {
      e = subscript(std::move(e));
    } else if (is_op("(")) {
      e = call(std::move(e));
    } else {
      break;
    }
  }
  return e;
}

ExprPtr Parser::filters_and_tests(ExprPtr e) {
  while (!failed()) {
    if (is_op("|")) {
      e = filter_chain(std::move(e), false);
    } else if (is_name("is")) {
      e = test(std::move(e));
    } else if (is_op("(")) {
      e = call(std::move(e));
    } else {
      break;
    }
  }
  return e;
}

// "|name(args)" repeated; with `first`, the first has no bar ({% filter upper|trim %}).
ExprPtr Parser::filter_chain(ExprPtr e, bool first) {
  while ((first || is_op("|")) && !failed()) {
    if (!first) ++at_;
    first = false;
    auto f = node(ExprKind::filter, now().line);
    f->text = take_name();
    while (skip_op(".")) f->text += "." + take_name();
    f->kids.push_back(std::move(e));
    if (is_op("(")) f->arguments = arguments();
    f->filter = find_filter(f->text);
    if (!f->filter) {
      if (std::string why = why_no_filter(f->text); !why.empty()) {
        fail_at(f->line, why, Errc::unsupported);
      } else if (conditional_ == 0 && !unknown_) {
        unknown_ = syntax_error(f->line, "No filter named '" + f->text + "'.");
      }
    }
    e = measured(std::move(f));
  }
  return e;
}

ExprPtr Parser::test(ExprPtr e) {
  auto t = node(ExprKind::test, now().line);
  expect_name("is");
  bool negated = skip_name("not");
  t->text = take_name();
  while (skip_op(".")) t->text += "." + take_name();
  t->kids.push_back(std::move(e));
  if (is_op("(")) {
    t->arguments = arguments();
  } else if (bool literal = now().token == Token::name || now().token == Token::string ||
                            now().token == Token::integer || now().token == Token::real || is_op("[") || is_op("{");
             literal && !is_name("else") && !is_name("or") && !is_name("and")) {
    if (is_name("is")) fail_here("You cannot chain multiple tests with is");
    t->arguments = std::make_unique<Arguments>();
    t->arguments->positional.push_back(postfix(primary()));
  }
  t->test = find_test(t->text);
  if (!t->test && conditional_ == 0 && !unknown_) {
    unknown_ = syntax_error(t->line, "No test named '" + t->text + "'.");
  }
  uint32_t line = t->line;
  ExprPtr out = measured(std::move(t));
  return negated ? wrap(ExprKind::logic_not, line, std::move(out)) : std::move(out);
}

ExprPtr Parser::subscript(ExprPtr e) {
  uint32_t line = now().line;
  if (skip_op(".")) {
    if (now().token == Token::name) {
      auto a = node(ExprKind::attribute, line);
      a->text = take_name();
      a->kids.push_back(std::move(e));
      return measured(std::move(a));
    }
    auto item = node(ExprKind::item, line);
    if (now().token != Token::integer) fail_here("expected name or number");
    item->kids.push_back(std::move(e));
    item->kids.push_back(now().token == Token::integer ? number() : node(ExprKind::constant, line));
    return measured(std::move(item));
  }
  expect_op("[");
  auto item = node(ExprKind::item, line);
  auto keys = node(ExprKind::tuple, line);
  while (!is_op("]") && !failed()) {
    if (!keys->kids.empty()) expect_op(",");
    keys->kids.push_back(subscribed());
  }
  if (keys->kids.empty()) fail_here("expected subscript expression");
  expect_op("]");
  item->kids.push_back(std::move(e));
  item->kids.push_back(keys->kids.size() == 1 ? std::move(keys->kids[0]) : measured(std::move(keys)));
  return measured(std::move(item));
}

ExprPtr Parser::subscribed() {
  auto slice = node(ExprKind::slice, now().line);
  slice->kids.resize(3);
  if (!is_op(":")) {
    ExprPtr first = expression();
    if (!is_op(":")) return first;
    slice->kids[0] = std::move(first);
  }
  expect_op(":");
  auto present = [&] { return !is_op(":") && !is_op("]") && !is_op(",") && !failed(); };
  if (present()) slice->kids[1] = expression();
  if (skip_op(":") && present()) slice->kids[2] = expression();
  return measured(std::move(slice));
}

ExprPtr Parser::call(ExprPtr e) {
  auto c = node(ExprKind::call, now().line);
  c->kids.push_back(std::move(e));
  c->arguments = arguments();
  return measured(std::move(c));
}

std::unique_ptr<Arguments> Parser::arguments() {
  auto out = std::make_unique<Arguments>();
  expect_op("(");
  bool any = false;
  while (!is_op(")") && !failed()) {
    if (std::exchange(any, true)) {
      expect_op(",");
      if (is_op(")")) break;
    }
    const char* bad = "invalid syntax for function call expression";
    if (skip_op("**")) {
      if (out->star_star) fail_here(bad);
      out->star_star = expression();
    } else if (skip_op("*")) {
      if (out->star || out->star_star) fail_here(bad);
      out->star = expression();
    } else if (now().token == Token::name && tokens_[at_ + 1].token == Token::op && tokens_[at_ + 1].text == "=") {
      if (out->star_star) fail_here(bad);
      std::string key = take_name();
      expect_op("=");
      for (const auto& [known, value] : out->named) {
        if (known == key) fail_here("keyword argument repeated: " + key);
      }
      out->named.emplace_back(std::move(key), expression());
    } else {
      if (out->star || out->star_star || !out->named.empty()) fail_here(bad);
      out->positional.push_back(expression());
    }
  }
  expect_op(")");
  return out;
}

bool Parser::tuple_end(std::initializer_list<std::string_view> ends) const {
  return now().token == Token::print_end || now().token == Token::block_end || is_op(")") || at_stop(ends);
}

ExprPtr Parser::tuple(std::initializer_list<std::string_view> ends, bool with_conditional, bool parentheses,
                      bool simple) {
  uint32_t line = now().line;
  auto all = node(ExprKind::tuple, line);
  bool comma = false;
  while (!failed()) {
    if (!all->kids.empty()) expect_op(",");
    if (tuple_end(ends)) break;
    all->kids.push_back(simple ? primary() : expression(with_conditional));
    if (!is_op(",")) break;
    comma = true;
  }
  if (!comma) {
    if (!all->kids.empty()) return std::move(all->kids[0]);
    if (!parentheses) fail_here("Expected an expression, got " + describe(now()));
  }
  return measured(std::move(all));
}

bool Parser::assignable(const Expr& e) {
  if (e.kind == ExprKind::name) return true;
  if (e.kind != ExprKind::tuple) return false;
  for (const ExprPtr& kid : e.kids) {
    if (!kid || !assignable(*kid)) return false;
  }
  return true;
}

ExprPtr Parser::assign_target(bool with_attribute, bool with_tuple) {
  uint32_t line = now().line;
  if (with_attribute && now().token == Token::name && tokens_[at_ + 1].token == Token::op &&
      tokens_[at_ + 1].text == ".") {
    auto e = node(ExprKind::attribute_target, line);
    e->id = id(take_name());
    ++at_;
    e->text = take_name();
    return e;
  }
  ExprPtr e = with_tuple ? tuple({"in"}, true, false, true) : primary();
  if (!failed() && !assignable(*e)) fail_at(line, "can't assign to this expression");
  return e;
}

}  // namespace pinion::jinja
