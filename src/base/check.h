// check(): our own bugs. A failed check throws; bad input never reaches one, it returns an Error (base/result.h).
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pinion {

struct CheckFailure : std::logic_error {
  using std::logic_error::logic_error;
};

// A device or a kernel failed at run time. Caught in two places only: the CLI's main and the engine loop.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void check_failed(std::string_view what, std::source_location at) {
  throw CheckFailure("internal error: " + std::string(what) + " (" + at.file_name() + ":" + std::to_string(at.line()) +
                     ")");
}

inline void check(bool ok, std::string_view what, std::source_location at = std::source_location::current()) {
  if (!ok) [[unlikely]]
    check_failed(what, at);
}

}  // namespace pinion
