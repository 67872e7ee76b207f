// Which modules a rule of a description means: exact names, "re:" patterns and class names (compressed-tensors), and
// shell wildcards (ModelOpt).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/regex.h"

namespace pinion {

// A target of compressed-tensors: matches the module's full name, a pattern from its start, or the class Linear.
class ModuleTarget {
 public:
  static Result<ModuleTarget> compile(const std::string& text, std::string_view where);
  // How exact the match is: 3 the name, 2 a pattern, 1 the class, 0 none. All modules are linears here.
  int match(std::string_view module) const;

 private:
  std::string text_;
  std::vector<Regex> pattern_;  // one, or none
};

// "model.layers.*.mlp.router" as Python's fnmatch: * any characters, ? one. Linear in the text for each star.
bool wildcard_match(std::string_view pattern, std::string_view text);

}  // namespace pinion
