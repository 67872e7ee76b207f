// Where the tests' data lie: in the source and build tree, or where the environment variables of the same names say, on
// a machine to which only the binaries were carried.
#pragma once

#include <cstdlib>
#include <filesystem>

namespace pinion {

inline std::filesystem::path test_directory(const char* variable, const char* otherwise) {
  const char* given = std::getenv(variable);
  return given != nullptr && *given != 0 ? given : otherwise;
}
inline std::filesystem::path golden_dir() {
  return test_directory("PINION_GOLDEN_DIR", PINION_GOLDEN_DIR);
}
inline std::filesystem::path source_dir() {
  return test_directory("PINION_SOURCE_DIR", PINION_SOURCE_DIR);
}

}  // namespace pinion
