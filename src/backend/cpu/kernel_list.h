// The CPU's kernels, by op, in priority order. Names carry no ISA: a launch takes the variant of its stream's device.
#pragma once

#include <span>

#include "backend/backend.h"

namespace pinion::cpu {

std::span<const Kernel> kernels(OpKind kind);

// One list per file of kernels/.
std::span<const Kernel> linear_kernels();
std::span<const Kernel> linear_matrix_kernels();
std::span<const Kernel> packed_kernels(OpKind kind);  // of linears and embeddings
std::span<const Kernel> attention_kernels();
std::span<const Kernel> row_kernels(OpKind kind);
std::span<const Kernel> moe_kernels(OpKind kind);
std::span<const Kernel> mla_kernels(OpKind kind);

// Why the CPU cannot take these weights and this cache; empty when it can.
std::string why_not_floats(const Call& call);

}  // namespace pinion::cpu
