// The backend "cuda": NVIDIA GPUs through the CUDA runtime, which is linked statically: a binary with this backend
// starts on machines without a driver, and then has no CUDA device.
#pragma once

#include "backend/backend.h"

namespace pinion {

const Backend& cuda_backend();

}  // namespace pinion
