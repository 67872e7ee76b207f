// What the CPU's linear kernels share: the task of a launch, its division over threads, its estimate.
#pragma once

#include "backend/cpu/isa.h"

namespace pinion::cpu {

LinearTask linear_task(const LaunchArgs& args);

// Weight rows of one piece of work, a multiple of `panel`: at least 64 KiB of weights, and a few pieces per thread, so
// that a delayed thread does not hold up the others.
int64_t rows_per_range(const LinearTask& task, int64_t panel, int threads);

// Microseconds, by the slower of memory and arithmetic, of which a kernel reaches the given shares.
double linear_us(const Call& call, const DeviceInfo& info, double memory_share, double flop_share);

// A tuning comes from an engine's file: numbers that no kernel proposes give `otherwise`.
// {panel, k_chunk, m_block}; k_chunk 0: all of k.
LinearTile linear_tile_of(const Tuning& tuning, int64_t panel_step, int64_t k, const LinearTile& otherwise);

// Weights that the matrix units multiply, all rows of them: kernels agree bit for bit only with themselves there.
bool takes_matrix_units(const Call& call, const DeviceInfo& info);

}  // namespace pinion::cpu
