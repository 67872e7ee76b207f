// The list of the latent attention kernels, in the order of preference.
#include "backend/cuda/kernels/mla.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "backend/cuda/kernel_list.h"

namespace pinion::cuda {
namespace {

const MlaAttention& attention_op(const Call& call) {
  return std::get<MlaAttention>(*call.op);
}

std::string why_not(const Call& call, const DeviceInfo&) {
  return why_not_floats(call);
}

std::string why_not_plain(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not(call, info); !why.empty()) return why;
  return mla_attention_plain_why_not(attention_op(call));
}

std::string why_not_absorbed(const Call& call, const DeviceInfo& info) {
  if (std::string why = why_not(call, info); !why.empty()) return why;
  int capability = 0;
  std::from_chars(info.isa.data() + std::min<size_t>(3, info.isa.size()), info.isa.data() + info.isa.size(),
                  capability);
  if (capability < 90 || capability >= 120) return "needs 227 KB of shared memory a block (compute capability 9 or 10)";
  const DType type = call.weights[0].dtype;
  if (call.kv_dtype != type || call.values.in[0] != type || call.values.out[0] != type) {
    return "multiplies values, weights and a cache of one type";
  }
  return mla_attention_absorbed_why_not(attention_op(call), type);
}

double estimate(const Call& call, const DeviceInfo& info, double matrix_fraction) {
  constexpr double kMatrixFlopsPerSm = 6e12;
  const MlaAttention& op = attention_op(call);
  const double rows = static_cast<double>(call.rows * op.heads), keys = static_cast<double>(call.context);
  const double flops = 2 * rows * static_cast<double>(op.rank * (op.nope + op.v)) +
                       2 * rows * keys * static_cast<double>(2 * op.rank + op.rope);
  const double bytes = 2 * static_cast<double>(call.seqs) * keys * static_cast<double>(op.rank + op.rope) +
                       2 * static_cast<double>(call.weights[0].rows * call.weights[0].cols);
  return std::max(bytes / (info.read_gbps * 0.6) * 1e-3,
                  flops / (info.threads * kMatrixFlopsPerSm * matrix_fraction) * 1e6);
}
double estimate_absorbed(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 10 + estimate(call, info, 0.25);  // four kernels
}
double estimate_unsplit(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 10 + static_cast<double>(call.context) * 0.02 + estimate(call, info, 0.25);  // one block walks a sequence
}
double estimate_plain(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 20 + 0.2 * static_cast<double>(call.context) + estimate(call, info, 0.005);
}
double estimate_write(const Call& call, const Tuning&, const DeviceInfo& info) {
  const auto& op = std::get<MlaKvWrite>(*call.op);
  return 2 + 4 * static_cast<double>(call.rows * op.heads * (op.nope + op.rope)) / info.read_gbps * 1e-3;
}

size_t workspace(const Call& call, const Tuning&, const DeviceInfo& info) {
  return mla_attention_absorbed_workspace(attention_op(call), call.rows, info.threads);
}

void launch_split(const LaunchArgs& args, Stream& stream) {
  mla_attention_absorbed(args, true, stream);
}
void launch_unsplit(const LaunchArgs& args, Stream& stream) {
  mla_attention_absorbed(args, false, stream);
}

constexpr std::array kKernels = {
    Kernel{.name = "cuda.mla_kv_write",
           .op = OpKind::mla_kv_write,
           .why_not = why_not,
           .tunings = nullptr,
           .estimate_us = estimate_write,
           .workspace = nullptr,
           .launch = mla_kv_write},
    Kernel{.name = "cuda.mla_attention.absorbed",
           .op = OpKind::mla_attention,
           .batch_invariant = false,  // how many splits a sequence has depends on the others
           .why_not = why_not_absorbed,
           .tunings = nullptr,
           .estimate_us = estimate_absorbed,
           .workspace = workspace,
           .launch = launch_split},
    Kernel{.name = "cuda.mla_attention.unsplit",
           .op = OpKind::mla_attention,
           .why_not = why_not_absorbed,
           .tunings = nullptr,
           .estimate_us = estimate_unsplit,
           .workspace = workspace,
           .launch = launch_unsplit},
    Kernel{.name = "cuda.mla_attention.plain",
           .op = OpKind::mla_attention,
           .why_not = why_not_plain,
           .tunings = nullptr,
           .estimate_us = estimate_plain,
           .workspace = nullptr,
           .launch = mla_attention_plain},
};

}  // namespace

std::span<const Kernel> mla_kernels() {
  return kKernels;
}

}  // namespace pinion::cuda
