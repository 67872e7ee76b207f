// --config: a verb's flags from a YAML or JSON file. A key is a flag's name; TensorRT-LLM's settings
// (executor_config, kv_cache_config, scheduler_config) are understood where they mean the same. A flag that is also on
// the command line is taken from there.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace pinion::cli {

// YAML (of which JSON is a part) as JSON: plain scalars become numbers and booleans, quoted ones stay strings. Bounded
// in size, depth and number of nodes. Errors: not_found, corrupt with the line.
Result<OrderedJson> read_config_file(const std::filesystem::path& path);

// The flags that a configuration means, by name, each with its values; `other` gets the keys in `kept` as they are.
// Errors name the key that is unknown or cannot be honoured.
using ConfigFlags = std::vector<std::pair<std::string, std::vector<std::string>>>;
Result<ConfigFlags> config_flags(const OrderedJson& config, const std::vector<std::string>& kept, OrderedJson& other);

// Sets the options of `app` that the command line did not.
Status apply_flags(CLI::App& app, const ConfigFlags& flags, const std::string& where);

}  // namespace pinion::cli
