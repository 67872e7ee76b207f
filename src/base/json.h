// The one JSON reader: size- and depth-limited, refuses duplicate keys, never throws. Everything that parses JSON from
// outside (files, requests) goes through parse_json; code then reads the values with nlohmann's const interface.
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/result.h"

namespace pinion {

using Json = nlohmann::json;                 // objects sorted by key
using OrderedJson = nlohmann::ordered_json;  // objects in insertion order: templates' tojson, written files

struct JsonLimits {
  size_t bytes = size_t{256} << 20;
  int depth = 64;
};

// `where` names the file or field in the error. Errors: corrupt, with the byte offset.
Result<Json> parse_json(std::string_view text, std::string_view where, JsonLimits limits = {});
Result<OrderedJson> parse_ordered_json(std::string_view text, std::string_view where, JsonLimits limits = {});
Result<Json> read_json_file(const std::filesystem::path& path, JsonLimits limits = {});
Result<OrderedJson> read_ordered_json_file(const std::filesystem::path& path, JsonLimits limits = {});

}  // namespace pinion
