// Template source to tokens, with Jinja's whitespace control as Hugging Face sets it: trim_blocks and lstrip_blocks on,
// one trailing newline dropped, newlines normalised. Comments and raw blocks do not outlive the lexer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace pinion::jinja {

enum class Token : uint8_t {
  data,
  print_begin,  // {{
  print_end,
  block_begin,  // {%
  block_end,
  name,
  string,  // text: the decoded literal
  integer,
  real,
  op,  // text: the operator
  end,
};

struct Lexeme {
  Token token;
  uint32_t line;
  std::string text;
};

Error syntax_error(uint32_t line, std::string_view what, Errc code = Errc::corrupt);

Result<std::vector<Lexeme>> tokenize_template(std::string_view source);

}  // namespace pinion::jinja
