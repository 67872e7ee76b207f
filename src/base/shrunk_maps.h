// Mapped files that become shorter while they are mapped. Reading past the new end raises SIGBUS; a handler puts zeros
// there instead, and whoever commits what was made from those bytes asks first whether one of the maps has shrunk.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pinion {

// Registers a map; the first one installs the handler, which passes on every SIGBUS that is not about a registered map.
// Past 16,384 maps a map is not registered. Thread-safe.
void watch_map(const std::byte* begin, size_t size, std::string_view path);
void unwatch_map(const std::byte* begin);  // before it is unmapped

// The path of a registered map that was read past its file's new end; empty when there is none.
std::string shrunk_file();

}  // namespace pinion
