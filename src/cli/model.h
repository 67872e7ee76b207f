// The flags that most verbs begin with: which model, how it is built, within which limits.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "backend/all/backends.h"
#include "session/open_model.h"

namespace pinion::cli {

void add_build_options(CLI::App& app, BuildArgs& args);
void add_limit_options(CLI::App& app, LimitArgs& args);
void add_host_tier_option(CLI::App& app, LimitArgs& args);        // of verbs that keep prefixes from request to request
void add_model_options(CLI::App& app, ModelArgs& args);           // MODEL, --tokenizer and both of the above
Result<std::vector<int32_t>> parse_ids(const std::string& text);  // "1,2,3"

}  // namespace pinion::cli
