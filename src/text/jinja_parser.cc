// Recursive descent, one class; expressions are in jinja_parser_expressions.cc. An error is remembered and the token
// stream jumps to its end, so that every loop stops without each call having to test for it.
#include "text/jinja_parser.h"

#include "text/jinja_parser_state.h"

namespace pinion::jinja {

Parser::Parser(std::vector<Lexeme> tokens) : tokens_(std::move(tokens)) {
  out_.loop_id = id("loop");
  out_.caller_id = id("caller");
  out_.varargs_id = id("varargs");
  out_.kwargs_id = id("kwargs");
}

Result<Template> Parser::run() {
  out_.body = body({});
  if (error_ || unknown_) return error_ ? *std::move(error_) : *std::move(unknown_);
  return std::move(out_);
}

void Parser::fail_at(uint32_t line, std::string what, Errc code) {
  if (!error_) error_ = syntax_error(line, what, code);
  at_ = tokens_.size() - 1;
}

uint32_t Parser::id(std::string_view name) {
  auto [it, fresh] = ids_.try_emplace(std::string(name), static_cast<uint32_t>(out_.names.size()));
  if (fresh) out_.names.emplace_back(name);
  return it->second;
}

bool Parser::is_name(std::string_view name) const {
  return now().token == Token::name && now().text == name;
}
bool Parser::is_op(std::string_view op) const {
  return now().token == Token::op && now().text == op;
}

bool Parser::skip_name(std::string_view name) {
  if (!is_name(name)) return false;
  ++at_;
  return true;
}

bool Parser::skip_op(std::string_view op) {
  if (!is_op(op)) return false;
  ++at_;
  return true;
}

std::string Parser::describe(const Lexeme& t) {
  switch (t.token) {
    case Token::data:
      return "text";
    case Token::print_begin:
      return "'{{'";
    case Token::print_end:
      return "'}}'";
    case Token::block_begin:
      return "'{%'";
    case Token::block_end:
      return "'%}'";
    case Token::end:
      return "end of template";
    case Token::string:
      return "string '" + t.text + "'";
    default:
      return "'" + t.text + "'";
  }
}

void Parser::expect_op(std::string_view op) {
  if (!skip_op(op)) fail_here("expected '" + std::string(op) + "', got " + describe(now()));
}

void Parser::expect_name(std::string_view name) {
  if (!skip_name(name)) fail_here("expected '" + std::string(name) + "', got " + describe(now()));
}

void Parser::expect(Token token, std::string_view what) {
  if (now().token != token) {
    fail_here("expected " + std::string(what) + ", got " + describe(now()));
  } else if (token != Token::end) {
    ++at_;
  }
}

std::string Parser::take_name() {
  if (now().token != Token::name) {
    fail_here("expected a name, got " + describe(now()));
    return {};
  }
  return tokens_[at_++].text;
}

bool Parser::at_stop(std::initializer_list<std::string_view> stops) const {
  for (std::string_view stop : stops) {
    if (is_name(stop)) return true;
  }
  return false;
}

// Statements until a block tag that begins with one of `stops`; its name is then the current token. Without stops,
// until the end of the template.
Body Parser::body(std::initializer_list<std::string_view> stops) {
  Body out;
  if (++nesting_ > kMaxNesting) fail_here("blocks are nested too deeply", Errc::unsupported);
  while (now().token != Token::end) {
    const Lexeme& t = now();
    if (t.token == Token::data) {
      auto s = statement_node(StmtKind::text, t.line);
      s->text = t.text;
      ++at_;
      out.push_back(std::move(s));
    } else if (t.token == Token::print_begin) {
      ++at_;
      auto s = statement_node(StmtKind::print, t.line);
      s->expr = tuple({});
      expect(Token::print_end, "'}}'");
      out.push_back(std::move(s));
    } else {
      expect(Token::block_begin, "a tag");
      if (at_stop(stops)) {
        --nesting_;
        return out;
      }
      if (auto s = statement()) out.push_back(std::move(s));
    }
  }
  --nesting_;
  if (stops.size() && !failed()) {
    fail_here("unexpected end of template, expected '" + std::string(*std::rbegin(stops)) + "'");
  }
  return out;
}

// After body(): consumes the closing tag.
void Parser::close(std::string_view name) {
  expect_name(name);
  expect(Token::block_end, "'%}'");
}

std::unique_ptr<Stmt> Parser::statement_node(StmtKind kind, uint32_t line) {
  auto s = std::make_unique<Stmt>();
  s->kind = kind;
  s->line = line;
  return s;
}

std::unique_ptr<Stmt> Parser::statement() {
  uint32_t line = now().line;
  std::string tag = take_name();
  if (tag == "if") return parse_if(line);
  if (tag == "for") return parse_for(line);
  if (tag == "set") return parse_set(line);
  if (tag == "macro") return parse_macro(line);
  if (tag == "call") return parse_call_block(line);
  if (tag == "with") return parse_with(line);
  if (tag == "filter") {
    auto s = statement_node(StmtKind::filter_block, line);
    s->expr = filter_chain(nullptr, true);
    expect(Token::block_end, "'%}'");
    s->body = body({"endfilter"});
    close("endfilter");
    return s;
  }
  if (tag == "generation") {
    auto s = statement_node(StmtKind::scope, line);
    expect(Token::block_end, "'%}'");
    s->body = body({"endgeneration"});
    close("endgeneration");
    return s;
  }
  if (tag == "break" || tag == "continue") {
    if (loops_ == 0) fail_at(line, "'" + tag + "' outside a loop");
    expect(Token::block_end, "'%}'");
    return statement_node(tag == "break" ? StmtKind::break_loop : StmtKind::continue_loop, line);
  }
  for (std::string_view known :
       {"extends", "include", "import", "from", "block", "autoescape", "trans", "do", "debug"}) {
    if (tag == known) {
      fail_at(line, "the tag '" + tag + "' is not available in chat templates", Errc::unsupported);
      return nullptr;
    }
  }
  fail_at(line, "Encountered unknown tag '" + tag + "'.");
  return nullptr;
}

std::unique_ptr<Stmt> Parser::parse_if(uint32_t line) {
  auto s = statement_node(StmtKind::condition, line);
  ++conditional_;
  while (true) {
    ExprPtr test = tuple({}, false);
    expect(Token::block_end, "'%}'");
    s->branches.emplace_back(std::move(test), body({"elif", "else", "endif"}));
    if (!skip_name("elif")) break;
  }
  if (skip_name("else")) {
    expect(Token::block_end, "'%}'");
    s->otherwise = body({"endif"});
  }
  close("endif");
  --conditional_;
  return s;
}

std::unique_ptr<Stmt> Parser::parse_for(uint32_t line) {
  auto s = statement_node(StmtKind::loop, line);
  s->target = assign_target(false, true);
  expect_name("in");
  s->expr = tuple({"recursive"}, false);
  bool outer_uses_loop = std::exchange(uses_loop_, false);
  if (skip_name("if")) s->filter = expression();
  s->recursive = skip_name("recursive");
  expect(Token::block_end, "'%}'");
  ++loops_;
  s->body = body({"endfor", "else"});
  --loops_;
  s->uses_loop = uses_loop_ || s->recursive;
  uses_loop_ = outer_uses_loop;
  if (skip_name("else")) {
    expect(Token::block_end, "'%}'");
    s->otherwise = body({"endfor"});
  }
  close("endfor");
  return s;
}

std::unique_ptr<Stmt> Parser::parse_set(uint32_t line) {
  auto s = statement_node(StmtKind::set, line);
  s->target = assign_target(true, true);
  if (skip_op("=")) {
    s->expr = tuple({});
    expect(Token::block_end, "'%}'");
    return s;
  }
  s->kind = StmtKind::set_block;
  if (is_op("|")) s->expr = filter_chain(nullptr, false);
  expect(Token::block_end, "'%}'");
  s->body = body({"endset"});
  close("endset");
  return s;
}

void Parser::signature(Macro& macro) {
  expect_op("(");
  while (!is_op(")") && !failed()) {
    if (!macro.parameters.empty()) expect_op(",");
    if (is_op(")")) break;
    std::string name = take_name();
    macro.parameters.push_back(id(name));
    if (name == "caller") macro.explicit_caller = true;
    macro.parameter_names.push_back(std::move(name));
    if (skip_op("=")) {
      macro.defaults.push_back(expression());
    } else if (!macro.defaults.empty()) {
      fail_here("non-default argument follows default argument");
    }
  }
  expect_op(")");
}

// The body of a macro or call block. It is a function: loop control does not reach out of it, and it notes which of the
// special names it reads.
void Parser::function_body(Macro& macro, std::string_view end) {
  Macro* outer = std::exchange(macro_, &macro);
  int loops = std::exchange(loops_, 0);
  macro.body = body({end});
  loops_ = loops;
  macro_ = outer;
  close(end);
}

std::unique_ptr<Stmt> Parser::parse_macro(uint32_t line) {
  auto s = statement_node(StmtKind::macro, line);
  s->macro = std::make_unique<Macro>();
  s->macro->name = take_name();
  s->id = id(s->macro->name);
  signature(*s->macro);
  expect(Token::block_end, "'%}'");
  function_body(*s->macro, "endmacro");
  return s;
}

std::unique_ptr<Stmt> Parser::parse_call_block(uint32_t line) {
  auto s = statement_node(StmtKind::call_block, line);
  s->macro = std::make_unique<Macro>();
  s->macro->name = "caller";
  if (is_op("(")) signature(*s->macro);
  s->expr = expression();
  if (s->expr && s->expr->kind != ExprKind::call) fail_at(line, "expected call");
  expect(Token::block_end, "'%}'");
  function_body(*s->macro, "endcall");
  return s;
}

std::unique_ptr<Stmt> Parser::parse_with(uint32_t line) {
  auto s = statement_node(StmtKind::with, line);
  while (now().token != Token::block_end && !failed()) {
    if (!s->branches.empty()) expect_op(",");
    ExprPtr target = assign_target(false, true);
    expect_op("=");
    auto pair = statement_node(StmtKind::set, line);
    pair->target = std::move(target);
    s->branches.emplace_back(expression(), Body{});
    s->branches.back().second.push_back(std::move(pair));
  }
  expect(Token::block_end, "'%}'");
  s->body = body({"endwith"});
  close("endwith");
  return s;
}

Result<Template> parse_template(std::string_view source) {
  PINION_TRY(std::vector<Lexeme> tokens, tokenize_template(source));
  return Parser(std::move(tokens)).run();
}

}  // namespace pinion::jinja
