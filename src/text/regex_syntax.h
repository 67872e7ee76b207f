// Tokenizer files hold regular expressions for Oniguruma (Ruby syntax); this rewrites one for PCRE2. The two agree on
// most of the language; the rewritten parts are Unicode \s \w \d \h \v, option letters, `{,n}`, `{n}+`, and classes
// with nested classes or `&&`.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace pinion {

Result<std::string> ruby_to_pcre2(std::string_view pattern, std::string_view where);

}  // namespace pinion
