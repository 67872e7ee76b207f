// What the kernels over packed weights share: the task of some weight rows, and inputs that are put in the order of the
// columns or rounded before.
#pragma once

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/isa.h"

namespace pinion::cpu {

inline constexpr int64_t kPackedPieceRows = 64;  // rows of x that one piece of work takes
// Floats of scratch that one thread needs for a piece.
inline constexpr int64_t kPackedScratch = kPackedRows * kPackedChunk + kPackedPieceRows * kPackedPanel + 2 * kMaxLanes;

std::string why_not_packed(const Call& call);  // of the first weight; the others are float biases

// The packed matrix from `first_row` on; the caller fills in `linear`.
PackedTask packed_task(const WeightView& w, int64_t first_row);

// Rows of x [rows, k] as the weight's packing wants them: x itself, or copies in `to` [rows, k].
constexpr bool copies_rows(const Packing& packing) {
  return packing.ordered || packing.inputs != InputRounding::none;
}
const float* prepare_rows(const WeightView& w, const float* x, int64_t rows, int64_t k, float* to, CpuStream& cpu);

}  // namespace pinion::cpu
