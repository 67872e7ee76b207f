// What a token leaves in the latent cache: the row of kernels/mla.cc's list.
#pragma once

#include "backend/backend.h"

namespace pinion::cpu {

extern const Kernel kMlaKvWrite;

}  // namespace pinion::cpu
