// Protobuf's text format, as far as Triton's config.pbtxt uses it, read into JSON: every field is an array of its
// values in order, since a field may be repeated: {"name": ["m"], "parameters": [{"key": ["a"], "value": [{…}]}, …]}.
// Enums and strings are both strings.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace pinion {

// `where` names the file. Errors: corrupt, with the line.
Result<OrderedJson> parse_pbtxt(std::string_view text, std::string_view where);

// What of a config.pbtxt is read. Parameters whose value is an unfilled template ("${…}") or empty are left out.
struct TritonConfig {
  std::string name, platform, backend;
  int64_t max_batch_size = 0;
  std::map<std::string, std::string> parameters;
  std::vector<std::string> steps;  // of an ensemble: the models' names
  bool decoupled = false;

  std::string parameter(const std::string& key) const;  // empty when absent
};
Result<TritonConfig> read_triton_config(std::string_view text, std::string_view where);

}  // namespace pinion
