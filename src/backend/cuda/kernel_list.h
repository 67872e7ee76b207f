// The GPU's kernels, by op, in priority order: the fast ones of kernels/<op>.h, then the last resort of that op.
#pragma once

#include <span>

#include "backend/backend.h"
#include "backend/largest_logits.h"

namespace pinion::cuda {

std::span<const Kernel> kernels(OpKind kind);

// Why kernels that take any float weights, cache and values cannot run the call; empty when they can.
std::string why_not_floats(const Call& call);

// SamplingDevice::launch_head: the linear kernels of up to 128 rows that read the weight once.
bool linear_head(const Kernel& kernel, const LaunchArgs& args, const LargestLogits& largest, Stream& stream);

// One list per file of kernels/, the fastest first.
std::span<const Kernel> row_kernels();        // embed, add, gated_act, select_rows
std::span<const Kernel> norm_kernels();       // rms_norm, add_rms_norm
std::span<const Kernel> rope_kernels();       // rope, rope_kv_write
std::span<const Kernel> linear_kernels();     // linear: by number of rows, then any GPU, then any shape
std::span<const Kernel> attention_kernels();  // attention: reading the cache once; any GPU, every feature
std::span<const Kernel> moe_kernels();        // moe_route, moe_linear, moe_combine
std::span<const Kernel> mla_kernels();        // mla_kv_write, mla_attention
std::span<const Kernel> reference_kernels();  // linear, attention: any shape, slow

}  // namespace pinion::cuda
