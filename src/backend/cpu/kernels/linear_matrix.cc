// Linear on the CPU's matrix units (isa_amx.cc). Where they are, they take every linear with bf16 weights, whatever the
// number of rows, so that a request's outputs do not depend on its batch.
#include <algorithm>
#include <array>

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"
#include "backend/cpu/kernels/linear.h"

namespace pinion::cpu {
namespace {

constexpr int64_t kPanel = 2 * kMatrixRows;
constexpr int64_t kPackRows = 2048;  // rows of x packed at a time

// Up to two tiles of rows: weights are read once, row by row. More: a chunk of the terms of all rows stays in L2, from
// where 32 rows' pass by the weights of a panel.
LinearTile default_tile(int64_t rows, int64_t k) {
  if (rows <= kPanel)
    return {.panel = kPanel, .k_chunk = (k + kSumBlock - 1) / kSumBlock * kSumBlock, .m_block = kPanel};
  return {.panel = 128, .k_chunk = 512, .m_block = 256};
}

LinearTile tile_of(const Tuning& tuning, int64_t rows, int64_t k) {
  LinearTile tile = linear_tile_of(tuning, kPanel, k, default_tile(rows, k));
  tile.m_block = (tile.m_block + kPanel - 1) / kPanel * kPanel;
  return tile;
}

std::string why_not(const Call& call, const DeviceInfo& info) {
  if (info.isa != "amx") return "needs matrix units (AMX)";
  if (!call.weights.empty() && call.weights[0].dtype != DType::bf16) return "multiplies bf16 weights";
  return why_not_floats(call);
}

std::vector<Tuning> tunings(const Call& call, const DeviceInfo&) {
  if (call.rows <= kPanel) return {{{32, 0, 32}}, {{64, 0, 32}}};
  return {{{128, 512, 256}}, {{256, 128, 256}}};
}

double estimate_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return linear_us(call, info, 0.9, 3);  // against the rate of f32 multiply-adds
}

size_t scratch_floats(const LinearTile& tile) {
  return static_cast<size_t>(matrix_scratch(tile) + 15) / 16 * 16;
}

size_t workspace(const Call& call, const Tuning& tuning, const DeviceInfo& info) {
  const int64_t k = std::get<Linear>(*call.op).in;
  size_t scratch = 0;  // a launch may have fewer rows, and take the other default
  for (const int64_t rows : {int64_t{1}, call.rows})
    scratch = std::max(scratch, scratch_floats(tile_of(tuning, rows, k)));
  return scratch * info.threads * sizeof(float) +
         static_cast<size_t>(std::min(call.rows, kPackRows) * terms_stride(k)) * sizeof(uint16_t);
}

void launch(const LaunchArgs& args, Stream& stream) {
  CpuStream& cpu = cpu_stream(stream);
  const LinearTask all = linear_task(args);
  const LinearTile tile = tile_of(args.tuning, all.m, all.k);
  const size_t scratch = scratch_floats(tile);
  const int64_t stride = terms_stride(all.k);
  check(cpu.isa().multiply_terms != nullptr && all.weight.dtype == DType::bf16, "cpu.linear.matrix cannot run this");
  check(args.workspace.size() >= scratch * cpu.threads() * sizeof(float) +
                                     static_cast<size_t>(std::min(all.m, kPackRows) * stride) * sizeof(uint16_t),
        "a linear kernel's workspace is too small");
  auto* memory = reinterpret_cast<float*>(args.workspace.data());
  auto* terms = reinterpret_cast<uint16_t*>(memory + scratch * cpu.threads());

  for (int64_t m = 0; m < all.m; m += kPackRows) {
    LinearTask task = all;
    task.m = std::min(kPackRows, all.m - m);
    task.x += m * all.k, task.y += m * (all.gated ? all.out / 2 : all.out);
    const int64_t blocks = (task.m + kMatrixRows - 1) / kMatrixRows;
    cpu.run_ranges(blocks, 8 * kMatrixRows * task.k, [&](int64_t first, int64_t last) {
      for (int64_t row = first * kMatrixRows; row < std::min(task.m, last * kMatrixRows); row += kMatrixRows) {
        cpu.isa().pack_terms(task.x + row * task.k, task.k, std::min(kMatrixRows, task.m - row), task.k,
                             terms + row * stride);
      }
    });
    // As in gemm: neighbouring pieces share a panel; with one part a piece is a run of panels.
    const int64_t parts = (task.m + tile.m_block - 1) / tile.m_block;
    const int64_t range = parts > 1 ? tile.panel : rows_per_range(task, tile.panel, cpu.threads());
    cpu.run_slots((task.out + range - 1) / range * parts, [&](int64_t slot, int64_t i) {
      const int64_t part = i % parts, first = i / parts * range;
      cpu.isa().multiply_terms(task, tile, first, std::min(task.out, first + range), part * tile.m_block,
                               std::min(task.m, (part + 1) * tile.m_block), terms, memory + slot * scratch);
    });
  }
}

constexpr std::array kKernels = {
    Kernel{.name = "cpu.linear.matrix",
           .op = OpKind::linear,
           .why_not = why_not,
           .tunings = tunings,
           .estimate_us = estimate_us,
           .workspace = workspace,
           .launch = launch},
};

}  // namespace

std::span<const Kernel> linear_matrix_kernels() {
  return kKernels;
}

}  // namespace pinion::cpu
