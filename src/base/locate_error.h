// An error that a callee could not place, given its place by a caller who knows the tensor, line or text.
#pragma once

#include "base/result.h"

namespace pinion {

// "what — remedy" becomes "what (where) — remedy"; an error that names a place keeps it, in front of this one.
Error locate_error(Error error, std::string_view where);

}  // namespace pinion
