// The list of linear kernels, in the order of preference. All read the checkpoint's own row-major layout, so that one
// copy of a weight serves every number of rows.
#include "backend/cuda/kernels/linear.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <charconv>

#include "backend/cuda/cuda_error.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr size_t kMostTimed = 3;  // of cuBLASLt's plans up to 128 rows
constexpr size_t kMostLarge = 5;  // beyond 128 rows cuBLASLt has no rival

const Linear& linear_op(const Call& call) {
  return std::get<Linear>(*call.op);
}

int compute_capability(const DeviceInfo& info) {  // "sm_90" is 90
  int v = 0;
  if (info.isa.starts_with("sm_")) std::from_chars(info.isa.data() + 3, info.isa.data() + info.isa.size(), v);
  return v;
}

LinearProblem problem(const Linear& op, DType weight, DType x, DType y, int64_t rows) {
  LinearProblem p{.type = weight, .x_type = x, .in = static_cast<int32_t>(op.in)};
  p.output.y.dtype = y;
  p.output.out = static_cast<int32_t>(op.out), p.output.tokens = static_cast<int32_t>(rows);
  p.output.gated_silu = op.epilogue == Epilogue::gated_silu;
  return p;
}

// What all kernels ask for: row-major float weights; those on tensor cores, x of the weight's type.
std::string why_not_plain(const Call& call, const DeviceInfo&) {
  if (std::string why = why_not_floats(call); !why.empty()) return why;
  const Linear& op = linear_op(call);
  if (op.in > INT32_MAX || op.out > INT32_MAX) return "counts rows and columns of a weight in 31 bits";
  return {};
}

std::string why_not_tensor_cores(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not_plain(call, info); !why.empty()) return why;
  if (call.values.in[0] != call.weights[0].dtype) return "multiplies x of the weight's type";
  return {};
}

std::string why_not_copy_engine(const Call& call, const DeviceInfo& info) {
  if (const int cc = compute_capability(info); cc < 90 || cc >= 120) {
    return "needs bulk copies and 227 KB of shared memory a block (compute capability 9 or 10)";
  }
  return why_not_tensor_cores(call, info);
}

std::string why_not_gemv(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not_copy_engine(call, info); !why.empty()) return why;
  return linear_gemv_why_not(call.weights[0].dtype, call.rows, linear_op(call).in);
}

std::string why_not_stream(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not_copy_engine(call, info); !why.empty()) return why;
  const Linear& op = linear_op(call);
  return linear_stream_why_not(call.weights[0].dtype, call.rows, op.in, op.out, info.threads);
}

std::string why_not_wgmma(const Call& call, const DeviceInfo& info) {
  if (info.isa != "sm_90") return "is written for Hopper's tensor copies and warpgroups";
  if (std::string why = why_not_tensor_cores(call, info); !why.empty()) return why;
  return linear_wgmma_why_not(call.weights[0].dtype, call.rows, linear_op(call).in);
}

std::string why_not_wide(const Call& call, const DeviceInfo& info) {
  if (info.isa != "sm_90") return "is written for Hopper's tensor copies and warpgroups";
  if (std::string why = why_not_tensor_cores(call, info); !why.empty()) return why;
  const Linear& op = linear_op(call);
  if (op.bias) return "adds no bias";
  return linear_wide_why_not(problem(op, call.weights[0].dtype, call.values.in[0], call.values.out[0], call.rows),
                             info.threads);
}

std::string why_not_large(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not_tensor_cores(call, info); !why.empty()) return why;
  if (call.rows < 16) return "is for 16 rows and more";
  // Alone it is sometimes a few percent ahead there; in a step what follows it starts late, which costs more.
  if (call.rows <= 128 && why_not_wgmma(call, info).empty()) return "lets nothing start before it ends";
  if (linear_op(call).in % 8 != 0 || linear_op(call).out % 8 != 0) return "needs `in` and `out` to be multiples of 8";
  return linear_large_why_not();
}

std::string why_not_portable(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not_tensor_cores(call, info); !why.empty()) return why;
  return linear_portable_why_not(call.weights[0].dtype, linear_op(call).in);
}

// The floor, reading the weight or multiplying, over the fraction of it that the kernel was measured to reach.
double estimate(const Call& call, const DeviceInfo& info, double read_fraction, double matrix_fraction) {
  constexpr double kMatrixFlopsPerSm = 6e12, kBoundaryUs = 1.5;
  const Linear& op = linear_op(call);
  const double elements = static_cast<double>(op.in) * static_cast<double>(op.out),
               rows = static_cast<double>(call.rows);
  const double element_bytes = static_cast<double>(byte_size(call.weights[0].dtype));
  const double bytes = elements * element_bytes +
                       rows * (static_cast<double>(op.in) * element_bytes + static_cast<double>(op.output_width()) * 4);
  return kBoundaryUs + std::max(bytes / (info.read_gbps * read_fraction) * 1e-3,
                                2 * elements * rows / (info.threads * kMatrixFlopsPerSm * matrix_fraction) * 1e6);
}

double estimate_gemv(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 0.90, 1);
}
double estimate_stream(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 0.88, 0.3);
}
double estimate_wgmma(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 0.84, 0.5);
}
double estimate_wide(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 0.86, 0.6);
}
double estimate_large(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 0.80, 0.85) + 3;  // no dependent launch
}
double estimate_portable(const Call& call, const Tuning&, const DeviceInfo& info) {
  const double repeats = std::max(1.0, static_cast<double>(call.rows) / 64);  // reads of the weight, from L2 at best
  return estimate(call, info, 0.75 / repeats, 0.2);
}
double estimate_plain(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 5 + estimate(call, info, 0.2, 0.02);  // CUDA cores
}

std::vector<Tuning> tunings_stream(const Call& call, const DeviceInfo& info) {
  std::vector<Tuning> tunings;
  for (const StreamPlan& plan : linear_stream_plans(call.rows, linear_op(call).in, linear_op(call).out, info.threads)) {
    tunings.push_back({{plan.slice, plan.warps, plan.narrow, 0}});
  }
  return tunings;
}

std::vector<Tuning> tunings_gemv(const Call& call, const DeviceInfo& info) {
  std::vector<Tuning> tunings;
  for (const GemvPlan& plan : linear_gemv_plans(linear_op(call).in, linear_op(call).out, info.threads)) {
    tunings.push_back({{plan.warps, plan.narrow, 0, 0}});
  }
  return tunings;
}

std::vector<Tuning> tunings_wgmma(const Call& call, const DeviceInfo& info) {
  std::vector<Tuning> tunings;
  for (const WgmmaPlan& plan : linear_wgmma_plans(call.rows, linear_op(call).in, linear_op(call).out, info.threads)) {
    tunings.push_back({{plan.groups, plan.splits, plan.share, plan.rows}});
  }
  return tunings;
}

std::vector<Tuning> tunings_wide(const Call& call, const DeviceInfo& info) {
  std::vector<Tuning> tunings;
  for (const WidePlan& plan : linear_wide_plans(linear_op(call).out, info.threads)) {
    tunings.push_back({{plan.rows, 0, 0, 0}});
  }
  return tunings;
}

std::vector<Tuning> tunings_large(const Call& call, const DeviceInfo&) {
  int device = 0;
  cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  const LinearProblem p =
      problem(linear_op(call), call.weights[0].dtype, call.values.in[0], call.values.out[0], call.rows);
  std::vector<Tuning> tunings;
  for (const LargePlan& plan : linear_large_plans(p, device)) {
    if (tunings.size() < (call.rows > 128 ? kMostLarge : kMostTimed)) tunings.push_back({plan.algorithm});
  }
  return tunings;
}

size_t workspace_large(const Call& call, const Tuning&, const DeviceInfo&) {
  const Linear& op = linear_op(call);
  return linear_large_workspace(call.weights[0].dtype, call.rows, op.out, op.epilogue == Epilogue::gated_silu);
}

// The rows of a launch, at most `most` at a time: a step may bring more than the bucket that its kernel was chosen for.
// `largest`: of a head that need not store all rows.
template <class Run>
void for_rows(const LaunchArgs& args, const LargestLogits& largest, int64_t most, const Run& run) {
  const auto& op = std::get<Linear>(*args.op);
  const TensorView &x = args.in[0], &y = args.out[0];
  const int64_t rows = x.shape[0];
  for (int64_t first = 0; first < rows; first += most) {
    LinearProblem p = problem(op, args.weights[0].dtype, x.dtype, y.dtype, std::min(most, rows - first));
    p.weight = args.weights[0].data;
    p.x = static_cast<const std::byte*>(x.data) + first * op.in * static_cast<int64_t>(byte_size(x.dtype));
    p.output.y.data =
        static_cast<std::byte*>(y.data) + first * op.output_width() * static_cast<int64_t>(byte_size(y.dtype));
    if (op.bias) p.output.bias = const_values(args.weights[1]);
    if (largest.found != nullptr) p.output.largest = {largest.found + first, largest.stored + first};
    run(p);
  }
}

void run_gemv(const LaunchArgs& args, const LargestLogits& largest, Stream& stream) {
  const GemvPlan plan{args.tuning.value[0], args.tuning.value[1]};
  for_rows(args, largest, 1, [&](const LinearProblem& p) { linear_gemv(p, plan, stream); });
}

void run_stream(const LaunchArgs& args, const LargestLogits& largest, Stream& stream) {
  const auto& v = args.tuning.value;
  const StreamPlan plan{v[0], v[1], v[2]};
  for_rows(args, largest, 16, [&](const LinearProblem& p) { linear_stream(p, plan, stream); });
}

void run_wgmma(const LaunchArgs& args, const LargestLogits& largest, Stream& stream) {
  const auto& v = args.tuning.value;
  for_rows(args, largest, 128, [&](const LinearProblem& p) { linear_wgmma(p, {v[0], v[1], v[2], v[3]}, stream); });
}

void run_wide(const LaunchArgs& args, const LargestLogits& largest, Stream& stream) {
  const WidePlan plan{args.tuning.value[0]};
  for_rows(args, largest, 128, [&](const LinearProblem& p) { linear_wide(p, plan, stream); });
}

// A kernel whose end can leave the largest logit of a row, as a Kernel's launch and as a head.
template <void (*kRun)(const LaunchArgs&, const LargestLogits&, Stream&)>
void launch_rows(const LaunchArgs& args, Stream& stream) {
  kRun(args, {}, stream);
}

void launch_large(const LaunchArgs& args, Stream& stream) {
  for_rows(args, {}, INT32_MAX,
           [&](const LinearProblem& p) { linear_large(p, {args.tuning.value}, args.workspace, stream); });
}

void launch_portable(const LaunchArgs& args, Stream& stream) {
  for_rows(args, {}, 1 << 20, [&](const LinearProblem& p) { linear_portable(p, stream); });
}

void launch_plain(const LaunchArgs& args, Stream& stream) {
  for_rows(args, {}, 1 << 20, [&](const LinearProblem& p) { linear_plain(p, stream); });
}

constexpr Kernel row(std::string_view name, bool batch_invariant, decltype(Kernel::why_not) why_not,
                     decltype(Kernel::tunings) tunings, decltype(Kernel::estimate_us) estimate_us,
                     decltype(Kernel::workspace) workspace, decltype(Kernel::launch) launch) {
  return {.name = name,
          .op = OpKind::linear,
          .batch_invariant = batch_invariant,
          .why_not = why_not,
          .tunings = tunings,
          .estimate_us = estimate_us,
          .workspace = workspace,
          .launch = launch};
}

constexpr std::array kKernels = {
    row("cuda.linear.gemv", false, why_not_gemv, tunings_gemv, estimate_gemv, nullptr, launch_rows<run_gemv>),
    row("cuda.linear.stream", false, why_not_stream, tunings_stream, estimate_stream, nullptr, launch_rows<run_stream>),
    row("cuda.linear.wgmma", false, why_not_wgmma, tunings_wgmma, estimate_wgmma, nullptr, launch_rows<run_wgmma>),
    row("cuda.linear.wide", false, why_not_wide, tunings_wide, estimate_wide, nullptr, launch_rows<run_wide>),
    row("cuda.linear.large", false, why_not_large, tunings_large, estimate_large, workspace_large, launch_large),
    row("cuda.linear.portable", true, why_not_portable, nullptr, estimate_portable, nullptr, launch_portable),
    row("cuda.linear.plain", true, why_not_plain, nullptr, estimate_plain, nullptr, launch_plain),
};

}  // namespace

std::span<const Kernel> linear_kernels() {
  return kKernels;
}

bool linear_head(const Kernel& kernel, const LaunchArgs& args, const LargestLogits& largest, Stream& stream) {
  if (args.out[0].dtype != DType::f32 || std::get<Linear>(*args.op).epilogue != Epilogue::none) return false;
  if (kernel.launch == &launch_rows<run_gemv>) return run_gemv(args, largest, stream), true;
  if (kernel.launch == &launch_rows<run_stream>) return run_stream(args, largest, stream), true;
  if (kernel.launch == &launch_rows<run_wgmma>) return run_wgmma(args, largest, stream), true;
  if (kernel.launch == &launch_rows<run_wide>) return run_wide(args, largest, stream), true;
  return false;
}

}  // namespace pinion::cuda
