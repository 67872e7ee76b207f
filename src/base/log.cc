#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <cstdlib>
#include <string>

namespace pinion {

void init_log(std::string_view level) {
  auto logger = spdlog::stderr_color_mt("pinion");
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  spdlog::set_default_logger(logger);
  const char* environment = std::getenv("PINION_LOG");
  std::string name = !level.empty() ? std::string(level) : environment ? environment : "info";
  spdlog::set_level(spdlog::level::from_str(name));
}

}  // namespace pinion
