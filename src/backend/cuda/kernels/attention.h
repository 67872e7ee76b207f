// The attention kernels, one row each, and what their rows share.
#pragma once

#include "backend/backend.h"

namespace pinion::cuda {

const Kernel& portable_attention();  // mma.sync: any GPU since sm_80, every feature

// Microseconds at these fractions of the read bandwidth and of the tensor cores' bf16 rate.
double attention_estimate_us(const Call& call, const DeviceInfo& info, double read_fraction, double matrix_fraction);

}  // namespace pinion::cuda
