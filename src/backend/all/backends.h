// The explicit list of compiled-in backends. The CLI hands it to compiler and runtime; nothing registers itself.
#pragma once

#include <span>
#include <string_view>

#include "backend/backend.h"

namespace pinion {

std::span<const Backend* const> backends();          // the default first, the reference last
const Backend* find_backend(std::string_view name);  // null: no such backend

}  // namespace pinion
