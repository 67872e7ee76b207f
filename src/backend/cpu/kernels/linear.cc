// Linear on the CPU. All kernels sum every output in one order (generic/tile.h) and agree bit for bit on one ISA, so
// all are batch invariant and a deterministic engine may even mix them.
#include <algorithm>
#include <array>

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"
#include "backend/cpu/kernels/linear.h"

namespace pinion::cpu {
LinearTask linear_task(const LaunchArgs& args) {
  const auto& op = std::get<Linear>(*args.op);
  LinearTask task{.weight = {args.weights[0].data, args.weights[0].dtype},
                  .out = op.out,
                  .k = op.in,
                  .x = args.in[0].as<float>(),
                  .m = args.in[0].shape[0],
                  .y = args.out[0].as<float>(),
                  .gated = op.epilogue == Epilogue::gated_silu};
  if (op.bias) task.bias = {args.weights[1].data, args.weights[1].dtype};
  return task;
}

double linear_us(const Call& call, const DeviceInfo& info, double memory_share, double flop_share) {
  const auto& op = std::get<Linear>(*call.op);
  const DType type = call.weights.empty() ? DType::f32 : call.weights[0].dtype;
  const double weight_bytes = static_cast<double>(op.in) * op.out * bit_size(type) / 8;
  const double bytes = weight_bytes + 4.0 * call.rows * (op.in + op.output_width());
  const double flops = 2.0 * call.rows * op.in * op.out;
  return 2 + std::max(bytes / (info.read_gbps * memory_share), flops / (info.f32_gflops * flop_share)) * 1e-3;
}

int64_t rows_per_range(const LinearTask& task, int64_t panel, int threads) {
  const int64_t row_bytes = task.k * bit_size(task.weight.dtype) / 8;
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(8L * threads, task.out * row_bytes / 65536));
  return ((task.out + wanted - 1) / wanted + panel - 1) / panel * panel;
}

LinearTile linear_tile_of(const Tuning& tuning, int64_t panel_step, int64_t k, const LinearTile& otherwise) {
  const auto& v = tuning.value;
  const auto within = [](int64_t n, int64_t step, int64_t most) { return n > 0 && n <= most && n % step == 0; };
  if (!within(v[0], panel_step, 1 << 12) || !within(v[2], 1, 1 << 12)) return otherwise;
  const int64_t all = (k + kSumBlock - 1) / kSumBlock * kSumBlock;
  return {v[0], within(v[1], kSumBlock, 1 << 16) ? v[1] : all, v[2]};
}

bool takes_matrix_units(const Call& call, const DeviceInfo& info) {
  return info.isa == "amx" && !call.weights.empty() && call.weights[0].dtype == DType::bf16;
}

namespace {

// ---- which numbers a tuning holds ----
// gemv: {columns fetched ahead}.  gemm: {panel, k_chunk, m_block}; k_chunk 0: all of k. All zero: the defaults.

constexpr int32_t kDistance = 512;
constexpr int64_t kPackRows = 1056;  // rows of x packed at a time, for each of which weights are converted once

LinearTile tile_of(const Tuning& tuning, int64_t rows, int64_t k) {
  return linear_tile_of(tuning, kMaxTileRows, k, linear_tile(rows, k));
}

std::vector<Tuning> gemv_tunings(const Call&, const DeviceInfo&) {
  return {{{512}}, {{256}}, {{1024}}};
}

std::vector<Tuning> gemm_tunings(const Call& call, const DeviceInfo&) {
  if (call.rows <= kFewRows) return {{{48, 0, 64}}, {{96, 512, 64}}};
  return {{{144, 512, 264}}, {{144, 512, 512}}, {{240, 256, 264}}, {{96, 256, 128}}};
}

std::string why_not(const Call& call, const DeviceInfo& info) {
  if (takes_matrix_units(call, info)) return "leaves bf16 weights to the matrix units";
  return why_not_floats(call);
}
std::string gemv_why_not(const Call& call, const DeviceInfo& info) {
  if (call.rows > kGemvRows) return "takes one row";
  return why_not(call, info);
}

double gemv_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return linear_us(call, info, 0.95, 0.35);
}
double gemm_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return linear_us(call, info, 0.85, 0.75);
}

// Of one thread; then all of x.
size_t scratch_floats(const LinearTile& tile) {
  return static_cast<size_t>(gemm_scratch(tile) + 15) / 16 * 16;
}
size_t gemm_workspace(const Call& call, const Tuning& tuning, const DeviceInfo& info) {
  const int64_t k = std::get<Linear>(*call.op).in;
  size_t scratch = 0;  // a launch may have fewer rows, and take the other default
  for (const int64_t rows : {int64_t{1}, call.rows})
    scratch = std::max(scratch, scratch_floats(tile_of(tuning, rows, k)));
  const auto packed = static_cast<size_t>(std::min(call.rows, kPackRows) * k);
  return (scratch * info.threads + packed) * sizeof(float);
}

// ---- launch ----

void gemv(const LaunchArgs& args, Stream& stream) {
  CpuStream& cpu = cpu_stream(stream);
  const LinearTask task = linear_task(args);
  if (task.m == 0) return;
  check(task.m <= kGemvRows, "cpu.linear.gemv was launched with too many rows");
  const int64_t distance = args.tuning.value[0] > 0 ? args.tuning.value[0] : kDistance;
  const int64_t range = rows_per_range(task, 2 * kMaxTileRows, cpu.threads());
  cpu.run((task.out + range - 1) / range, [&](int64_t i) {
    cpu.isa().gemv(task, std::min(distance, task.k - 1), i * range, std::min(task.out, (i + 1) * range));
  });
}

void gemm(const LaunchArgs& args, Stream& stream) {
  CpuStream& cpu = cpu_stream(stream);
  const LinearTask all = linear_task(args);
  const LinearTile tile = tile_of(args.tuning, all.m, all.k);
  const size_t scratch = scratch_floats(tile);
  const int64_t passes = (all.m + kPackRows - 1) / kPackRows, blocks = (all.k + kSumBlock - 1) / kSumBlock;
  check(args.workspace.size() / sizeof(float) >=
            scratch * cpu.threads() + static_cast<size_t>(std::min(all.m, kPackRows) * all.k),
        "a linear kernel's workspace is too small");
  auto* memory = reinterpret_cast<float*>(args.workspace.data());
  float* packed = memory + scratch * cpu.threads();

  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t m = all.m * pass / passes, rows = all.m * (pass + 1) / passes - m;
    LinearTask task = all;
    task.x += m * all.k, task.m = rows, task.y += m * (all.gated ? all.out / 2 : all.out);
    // Rows of x in equal parts; each part's blocks of columns lie side by side.
    const int64_t parts = (rows + tile.m_block - 1) / tile.m_block;
    const auto first_of = [&](int64_t part) { return rows * part / parts; };
    cpu.run_ranges(parts * blocks, 4 * kSumBlock * (rows / parts), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t from = first_of(i / blocks), n = first_of(i / blocks + 1) - from, k0 = i % blocks * kSumBlock;
        cpu.isa().pack_x(task.x + from * task.k + k0, task.k, n, std::min(kSumBlock, task.k - k0),
                         packed + from * task.k + k0 * n);
      }
    });
    // Neighbouring pieces share a panel, which the caches still hold; with one part a piece is a run of panels, so that
    // what is fetched ahead is this thread's own.
    const int64_t range = parts > 1 ? tile.panel : rows_per_range(task, tile.panel, cpu.threads());
    cpu.run_slots((task.out + range - 1) / range * parts, [&](int64_t slot, int64_t i) {
      const int64_t part = i % parts, first = i / parts * range;
      cpu.isa().gemm(task, tile, first, std::min(task.out, first + range), first_of(part), first_of(part + 1),
                     packed + first_of(part) * task.k, memory + slot * scratch);
    });
  }
}

constexpr std::array kKernels = {
    Kernel{.name = "cpu.linear.gemv",
           .op = OpKind::linear,
           .why_not = gemv_why_not,
           .tunings = gemv_tunings,
           .estimate_us = gemv_us,
           .workspace = nullptr,
           .launch = gemv},
    Kernel{.name = "cpu.linear.gemm",
           .op = OpKind::linear,
           .why_not = why_not,
           .tunings = gemm_tunings,
           .estimate_us = gemm_us,
           .workspace = gemm_workspace,
           .launch = gemm},
};

}  // namespace

std::span<const Kernel> linear_kernels() {
  return kKernels;
}

}  // namespace pinion::cpu
