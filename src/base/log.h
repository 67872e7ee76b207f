// Logging goes to standard error through spdlog; standard output belongs to results.
#pragma once

#include <spdlog/spdlog.h>

namespace pinion {

// Level by name: trace, debug, info, warn, error, off. Called once by main; reads PINION_LOG when `level` is empty.
void init_log(std::string_view level);

}  // namespace pinion
