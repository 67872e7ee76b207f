// The attention kernels, one row each, and what their rows share.
#pragma once

#include "backend/backend.h"

namespace pinion::cuda {

const Kernel& portable_attention();  // mma.sync: any GPU since sm_80, every feature
const Kernel& hopper_attention();    // tensor copies and wgmma: sm_90a

// Parts of hopper_attention, which divide a batch between them (few_rows of attention_task.h).
size_t decode_workspace(const Call& call, const DeviceInfo& info);
void launch_decode(const LaunchArgs& args, Stream& stream);  // sequences with few rows; head sizes up to 256
bool prefill_takes(const LaunchArgs& args);
void launch_prefill(const LaunchArgs& args, Stream& stream);           // the others
void launch_portable_prefill(const LaunchArgs& args, Stream& stream);  // the others, of any head size

// Microseconds at these fractions of the read bandwidth and of the tensor cores' bf16 rate.
double attention_estimate_us(const Call& call, const DeviceInfo& info, double read_fraction, double matrix_fraction);

}  // namespace pinion::cuda
