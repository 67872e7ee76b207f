// Linear on the CPU. All kernels sum every output in one order (generic/dot.h) and agree bit for bit on one ISA, so all
// are batch invariant and a deterministic engine may even mix them.
#include <algorithm>
#include <array>

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"

namespace pinion::cpu {
namespace {

LinearTask task_of(const LaunchArgs& args) {
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

// ---- which numbers a tuning holds ----
// gemv: {1 + prefetch}.  skinny and gemm: {panel, k_block, m_block, prefetch}. All zero: the defaults.

LinearTile tile_of(const Tuning& tuning, const LinearTile& defaults, int64_t k) {
  LinearTile tile = defaults;
  if (tuning.value[0] > 0) {
    tile = {tuning.value[0], tuning.value[1], tuning.value[2], tuning.value[3] != 0};
  }
  tile.k_block = std::min(tile.k_block, (k + kMaxLanes - 1) / kMaxLanes * kMaxLanes);
  return tile;
}

constexpr LinearTile kSkinnyTile{.panel = 32, .k_block = 1024, .m_block = 66, .prefetch = true};
constexpr LinearTile kGemmTile{.panel = 64, .k_block = 1024, .m_block = 132, .prefetch = false};

std::vector<Tuning> gemv_tunings(const Call&, const DeviceInfo&) {
  return {{{2}}, {{1}}};
}

std::vector<Tuning> skinny_tunings(const Call&, const DeviceInfo&) {
  return {{{32, 1024, 66, 1}}, {{32, 512, 66, 1}}, {{16, 2048, 66, 1}}, {{32, 1024, 66, 0}}};
}

// 132 rows: full tiles of 6 and of 3. A panel of 64 x 1024 floats and its x fit a 2 MiB L2; 32 x 512 a 512 KiB one.
std::vector<Tuning> gemm_tunings(const Call&, const DeviceInfo&) {
  return {{{64, 1024, 132, 0}}, {{64, 2048, 66, 0}}, {{32, 1024, 264, 0}}, {{32, 512, 132, 0}}};
}

// ---- the estimate: the slower of memory and arithmetic ----

double estimate(const Call& call, const DeviceInfo& info, double memory_share, double flop_share) {
  const auto& op = std::get<Linear>(*call.op);
  const DType type = call.weights.empty() ? DType::f32 : call.weights[0].dtype;
  const double weight_bytes = static_cast<double>(op.in) * op.out * bit_size(type) / 8;
  const double bytes = weight_bytes + 4.0 * call.rows * (op.in + op.output_width());
  const double flops = 2.0 * call.rows * op.in * op.out;
  return 2 + std::max(bytes / (info.read_gbps * memory_share), flops / (info.f32_gflops * flop_share)) * 1e-3;
}

std::string gemv_why_not(const Call& call, const DeviceInfo&) {
  if (call.rows > kGemvRows) return "takes at most " + std::to_string(kGemvRows) + " rows";
  return why_not_floats(call);
}
std::string why_not(const Call& call, const DeviceInfo&) {
  return why_not_floats(call);
}

// gemv converts a weight once per tile of rows and waits for lane sums; the others pay for writing a panel.
double gemv_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 0.95, 0.35);
}
double skinny_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 0.65, 0.7);
}
double gemm_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 0.6, 0.8);
}
double any_us(const Call& call, const Tuning& tuning, const DeviceInfo& info) {
  if (call.rows <= kGemvRows) return 1 + gemv_us(call, tuning, info);
  return 1 + (call.rows <= 64 ? skinny_us(call, tuning, info) : gemm_us(call, tuning, info));
}

size_t scratch_bytes(const LinearTile& tile, int threads) {
  return static_cast<size_t>(gemm_scratch(tile)) * sizeof(float) * threads;
}
int64_t k_of(const Call& call) {
  return std::get<Linear>(*call.op).in;
}
size_t skinny_workspace(const Call& call, const Tuning& tuning, const DeviceInfo& info) {
  return scratch_bytes(tile_of(tuning, kSkinnyTile, k_of(call)), info.threads);
}
size_t gemm_workspace(const Call& call, const Tuning& tuning, const DeviceInfo& info) {
  return scratch_bytes(tile_of(tuning, kGemmTile, k_of(call)), info.threads);
}
size_t any_workspace(const Call& call, const Tuning& tuning, const DeviceInfo& info) {
  return std::max(skinny_workspace(call, tuning, info), gemm_workspace(call, tuning, info));
}

// ---- launch ----

void gemv(const LaunchArgs& args, Stream& stream) {
  CpuStream& cpu = cpu_stream(stream);
  const LinearTask task = task_of(args);
  if (task.m == 0) return;
  check(task.m <= kGemvRows, "cpu.linear.gemv was launched with too many rows");
  const bool prefetch = args.tuning.value[0] != 1;
  // Ranges of at least 64 KiB of weights, and a few per thread, so that a delayed thread does not hold up the others.
  const int64_t row_bytes = task.k * bit_size(task.weight.dtype) / 8;
  const int64_t panels = (task.out + kGemvPanel - 1) / kGemvPanel;
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(8L * cpu.threads(), task.out * row_bytes / 65536));
  const int64_t per_range = (panels + wanted - 1) / wanted;
  cpu.run((panels + per_range - 1) / per_range, [&](int64_t i) {
    const int64_t first = i * per_range * kGemvPanel;
    cpu.isa().gemv(task, prefetch, first, std::min(task.out, first + per_range * kGemvPanel));
  });
}

void blocked(const LaunchArgs& args, CpuStream& cpu, const LinearTile& tile) {
  const LinearTask task = task_of(args);
  if (task.m == 0) return;
  const size_t floats = static_cast<size_t>(gemm_scratch(tile));
  check(args.workspace.size() >= floats * sizeof(float) * cpu.threads(), "a linear kernel's workspace is too small");
  auto* scratch = reinterpret_cast<float*>(args.workspace.data());
  const int64_t panels = (task.out + tile.panel - 1) / tile.panel;
  const int64_t parts = (task.m + tile.m_block - 1) / tile.m_block;
  // Rows of x in equal parts; neighbouring tasks share a panel, which the caches still hold. With one part, a task is a
  // run of panels, so that the panel fetched ahead is this thread's own next one; several runs a thread even out
  // delays.
  const int64_t run = parts > 1 ? 1 : std::max<int64_t>(1, panels / (6L * cpu.threads()));
  const int64_t runs = (panels + run - 1) / run;
  cpu.run_slots(runs * parts, [&](int64_t slot, int64_t i) {
    const int64_t part = i % parts;
    for (int64_t panel = i / parts * run; panel < std::min(panels, (i / parts + 1) * run); ++panel) {
      const int64_t first = panel * tile.panel;
      cpu.isa().gemm(task, tile, first, std::min(task.out, first + tile.panel), task.m * part / parts,
                     task.m * (part + 1) / parts, scratch + slot * floats);
    }
  });
}

void skinny(const LaunchArgs& args, Stream& stream) {
  blocked(args, cpu_stream(stream), tile_of(args.tuning, kSkinnyTile, std::get<Linear>(*args.op).in));
}

void gemm(const LaunchArgs& args, Stream& stream) {
  blocked(args, cpu_stream(stream), tile_of(args.tuning, kGemmTile, std::get<Linear>(*args.op).in));
}

// The last resort and the one kernel of a deterministic engine: the way that suits the rows at hand.
void any(const LaunchArgs& args, Stream& stream) {
  const int64_t rows = args.in[0].shape[0];
  if (rows <= kGemvRows) return gemv(args, stream);
  if (rows <= 64) return skinny(args, stream);
  gemm(args, stream);
}

constexpr std::array kKernels = {
    Kernel{.name = "cpu.linear.gemv",
           .op = OpKind::linear,
           .why_not = gemv_why_not,
           .tunings = gemv_tunings,
           .estimate_us = gemv_us,
           .workspace = nullptr,
           .launch = gemv},
    Kernel{.name = "cpu.linear.skinny",
           .op = OpKind::linear,
           .why_not = why_not,
           .tunings = skinny_tunings,
           .estimate_us = skinny_us,
           .workspace = skinny_workspace,
           .launch = skinny},
    Kernel{.name = "cpu.linear.gemm",
           .op = OpKind::linear,
           .why_not = why_not,
           .tunings = gemm_tunings,
           .estimate_us = gemm_us,
           .workspace = gemm_workspace,
           .launch = gemm},
    Kernel{.name = "cpu.linear",
           .op = OpKind::linear,
           .why_not = why_not,
           .tunings = nullptr,
           .estimate_us = any_us,
           .workspace = any_workspace,
           .launch = any},
};

}  // namespace

std::span<const Kernel> linear_kernels() {
  return kKernels;
}

}  // namespace pinion::cpu
