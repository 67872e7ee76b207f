// The list of attention kernels, in the order of preference.
#include "backend/cuda/kernels/attention.h"

#include <algorithm>
#include <array>

#include "backend/cuda/kernel_list.h"

namespace pinion::cuda {

double attention_estimate_us(const Call& call, const DeviceInfo& info, double read_fraction, double matrix_fraction) {
  constexpr double kMatrixFlopsPerSm = 6e12;  // bf16 on the tensor cores of one SM of a Hopper GPU
  const auto& op = std::get<Attention>(*call.op);
  const double keys = static_cast<double>(op.window > 0 ? std::min<int64_t>(op.window, call.context) : call.context);
  const double bytes = 2.0 * call.seqs * keys * op.kv_heads * op.head_dim * bit_size(call.kv_dtype) / 8;
  const double flops = 4.0 * call.rows * keys * op.heads * op.head_dim;
  const double read_us = bytes / (info.read_gbps * read_fraction) * 1e-3;
  return 3 + std::max(read_us, flops / (info.threads * kMatrixFlopsPerSm * matrix_fraction) * 1e6);
}

std::span<const Kernel> attention_kernels() {
  static const std::array kernels{portable_attention()};
  return kernels;
}

}  // namespace pinion::cuda
