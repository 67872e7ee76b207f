// The backend "reference": plain memory, one thread, the scalar kernels. `pinion diff` runs the un-fused graph on it.
#pragma once

#include "backend/backend.h"

namespace pinion {

const Backend& reference_backend();

}  // namespace pinion
