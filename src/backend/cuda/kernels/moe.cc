// The list of the mixture-of-experts kernels, in the order of preference.
#include "backend/cuda/kernels/moe.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "backend/cuda/kernel_list.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int64_t kMostRows = 32768;  // of one launch: slots and tiles are counted in 31 bits and in grid dimensions

const MoeLinear& linear_op(const Call& call) {
  return std::get<MoeLinear>(*call.op);
}

std::string why_not(const Call& call, const DeviceInfo&) {
  return why_not_floats(call);
}

std::string why_not_route(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not(call, info); !why.empty()) return why;
  return moe_route_why_not(std::get<MoeRoute>(*call.op));
}

std::string why_not_plain(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not(call, info); !why.empty()) return why;
  const MoeLinear& op = linear_op(call);
  if (op.in > INT32_MAX || op.out > INT32_MAX || op.experts > 65536 || op.top_k > 64) {
    return "takes at most 65,536 experts, 64 of them a token";
  }
  return {};
}

std::string why_not_tensor_cores(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not_plain(call, info); !why.empty()) return why;
  if (call.values.in[0] != call.weights[0].dtype) return "multiplies x of the weight's type";
  return {};
}

std::string why_not_grouped(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not_tensor_cores(call, info); !why.empty()) return why;
  return expert_linear_grouped_why_not(call.weights[0].dtype, linear_op(call).in);
}

std::string why_not_stream(const Call& call, const DeviceInfo& info) {
  if (!info.isa.starts_with("sm_9") && !info.isa.starts_with("sm_10")) {
    return "needs 220 KB of shared memory a block (compute capability 9 or 10)";
  }
  if (std::string why = why_not_tensor_cores(call, info); !why.empty()) return why;
  return expert_linear_stream_why_not(call.weights[0].dtype, call.rows, linear_op(call));
}

// The floor, reading the experts that rows are expected to hit or multiplying, over the fraction of it that the kernel
// was measured to reach.
double estimate(const Call& call, const DeviceInfo& info, double read_fraction, double matrix_fraction) {
  constexpr double kMatrixFlopsPerSm = 6e12;
  const MoeLinear& op = linear_op(call);
  const double rows = static_cast<double>(call.rows), experts = static_cast<double>(op.experts);
  const double hit = experts * (1 - std::pow(1 - std::min(1.0, static_cast<double>(op.top_k) / experts), rows));
  const double elements = static_cast<double>(op.in) * static_cast<double>(op.out);
  const double bytes = hit * elements * static_cast<double>(byte_size(call.weights[0].dtype)) +
                       2 * rows * static_cast<double>(op.top_k * (op.in + op.slot_width()));
  const double flops = 2 * elements * rows * static_cast<double>(op.top_k);
  return std::max(bytes / (info.read_gbps * read_fraction) * 1e-3,
                  flops / (info.threads * kMatrixFlopsPerSm * matrix_fraction) * 1e6);
}
double estimate_stream(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 3 + estimate(call, info, 0.9, 0.2);
}
double estimate_grouped(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 8 + estimate(call, info, 0.88, 0.4);  // three kernels
}
double estimate_plain(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 10 + estimate(call, info, 0.2, 0.02);  // CUDA cores
}
double estimate_small(const Call& call, const Tuning&, const DeviceInfo& info) {  // one kernel: the size is what counts
  return 2 + 2 * 4096.0 * static_cast<double>(call.rows) / info.read_gbps * 1e-3;
}

size_t workspace_grouped(const Call& call, const Tuning&, const DeviceInfo&) {
  const MoeLinear& op = linear_op(call);
  return expert_linear_grouped_workspace(std::min(call.rows, kMostRows) * op.top_k, op.experts);
}
size_t workspace_plain(const Call& call, const Tuning&, const DeviceInfo&) {
  const MoeLinear& op = linear_op(call);
  return expert_linear_plain_workspace(std::min(call.rows, kMostRows) * op.top_k, op.experts);
}

// The rows of a launch, at most `most` at a time.
template <class Run>
void for_rows(const LaunchArgs& args, int64_t most, const Run& run) {
  const auto& op = std::get<MoeLinear>(*args.op);
  const TensorView &x = args.in[0], &y = args.out[0];
  const auto bytes = [](const TensorView& v) { return v.shape[1] * static_cast<int64_t>(byte_size(v.dtype)); };
  for (int64_t first = 0; first < x.shape[0]; first += most) {
    ExpertLinearProblem p{.type = args.weights[0].dtype,
                          .x_type = x.dtype,
                          .weight = args.weights[0].data,
                          .x = static_cast<const std::byte*>(x.data) + first * bytes(x),
                          .ids = args.in[1].as<int32_t>() + first * op.top_k,
                          .in = static_cast<int32_t>(op.in),
                          .slots = static_cast<int32_t>(std::min(most, x.shape[0] - first) * op.top_k),
                          .top_k = static_cast<int32_t>(op.top_k),
                          .experts = static_cast<int32_t>(op.experts),
                          .first_expert = static_cast<int32_t>(op.first_expert),
                          .per_slot = op.per_slot,
                          .output = {.y = {static_cast<std::byte*>(y.data) + first * bytes(y), y.dtype},
                                     .bias = op.bias ? const_values(args.weights[1]) : ConstValues{},
                                     .out = static_cast<int32_t>(op.out),
                                     .epilogue = op.epilogue,
                                     .act = op.act,
                                     .limit = op.limit}};
    run(p);
  }
}

void launch_stream(const LaunchArgs& args, Stream& stream) {
  const int64_t most = std::min<int64_t>(16, 256 / std::get<MoeLinear>(*args.op).top_k);
  for_rows(args, most, [&](const ExpertLinearProblem& p) { expert_linear_stream(p, stream); });
}
void launch_grouped(const LaunchArgs& args, Stream& stream) {
  for_rows(args, kMostRows, [&](const ExpertLinearProblem& p) { expert_linear_grouped(p, args.workspace, stream); });
}
void launch_plain(const LaunchArgs& args, Stream& stream) {
  for_rows(args, kMostRows, [&](const ExpertLinearProblem& p) { expert_linear_plain(p, args.workspace, stream); });
}

constexpr std::array kKernels = {
    Kernel{.name = "cuda.moe_route",
           .op = OpKind::moe_route,
           .why_not = why_not_route,
           .tunings = nullptr,
           .estimate_us = estimate_small,
           .workspace = nullptr,
           .launch = moe_route},
    Kernel{.name = "cuda.moe_combine",
           .op = OpKind::moe_combine,
           .why_not = why_not,
           .tunings = nullptr,
           .estimate_us = estimate_small,
           .workspace = nullptr,
           .launch = moe_combine},
    Kernel{.name = "cuda.moe_linear.stream",
           .op = OpKind::moe_linear,
           .batch_invariant = false,
           .why_not = why_not_stream,
           .tunings = nullptr,
           .estimate_us = estimate_stream,
           .workspace = nullptr,
           .launch = launch_stream},
    Kernel{.name = "cuda.moe_linear.grouped",
           .op = OpKind::moe_linear,
           .why_not = why_not_grouped,
           .tunings = nullptr,
           .estimate_us = estimate_grouped,
           .workspace = workspace_grouped,
           .launch = launch_grouped},
    Kernel{.name = "cuda.moe_linear.plain",
           .op = OpKind::moe_linear,
           .why_not = why_not_plain,
           .tunings = nullptr,
           .estimate_us = estimate_plain,
           .workspace = workspace_plain,
           .launch = launch_plain},
};

}  // namespace

std::span<const Kernel> moe_kernels() {
  return kKernels;
}

}  // namespace pinion::cuda
