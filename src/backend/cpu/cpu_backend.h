// The backend "cpu": this machine's processor. Kernels are compiled for every ISA and bound to the best one here, or to
// the one that DeviceOptions::isa forces.
#pragma once

#include "backend/backend.h"

namespace pinion {

const Backend& cpu_backend();

}  // namespace pinion
