// Template source to syntax tree, by Jinja's grammar. Refuses by name what chat templates do not use (extends, include,
// import, block, autoescape) and unknown filters and tests, as Jinja does at compile time.
#pragma once

#include <string_view>

#include "base/result.h"
#include "text/jinja_ast.h"

namespace pinion::jinja {

Result<Template> parse_template(std::string_view source);

}  // namespace pinion::jinja
