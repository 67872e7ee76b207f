// The list of attention kernels, in the order of preference.
#include "backend/cuda/kernels/attention.h"

#include <algorithm>
#include <array>
#include <bit>

#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/kv_write.h"

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

namespace {

std::string why_not_hopper(const Call& call, const DeviceInfo& info) {
  const auto& op = std::get<Attention>(*call.op);
  if (info.isa != "sm_90") return "is written for Hopper's tensor copies and warpgroups";
  if (op.head_dim < 64) return "takes head sizes from 64";  // smaller ones leave most of a copy empty
  return portable_attention().why_not(call, info);
}

double estimate_hopper(const Call& call, const Tuning&, const DeviceInfo& info) {
  return attention_estimate_us(call, info, 0.85, 0.7);
}

size_t hopper_workspace(const Call& call, const Tuning& tuning, const DeviceInfo& info) {
  return std::max(decode_workspace(call, info), portable_attention().workspace(call, tuning, info));
}

void launch_hopper(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Attention>(*args.op);
  const BatchView& batch = *args.batch;
  if (batch.tokens == 0) return;
  const uint32_t block = static_cast<uint32_t>(batch.kv[op.layer].block_size);
  if (block < 16 || !std::has_single_bit(block)) return portable_attention().launch(args, stream);  // not of an engine
  if (args.in.size() == 3) write_kv(args, stream);
  // Which sequences there are is known on the device alone; here, that there can be none of a kind.
  const bool long_rows = batch.max_seq_tokens > 1 && batch.max_seq_tokens * (op.heads / op.kv_heads) > 32;
  if (batch.seqs > 1 || !long_rows) launch_decode(args, stream);
  if (long_rows) prefill_takes(args) ? launch_prefill(args, stream) : launch_portable_prefill(args, stream);
}

constexpr Kernel kHopper{.name = "cuda.attention.hopper",
                         .op = OpKind::attention,
                         .batch_invariant = false,  // how decoding is divided depends on all lengths
                         .why_not = why_not_hopper,
                         .tunings = nullptr,
                         .estimate_us = estimate_hopper,
                         .workspace = hopper_workspace,
                         .launch = launch_hopper};

}  // namespace

const Kernel& hopper_attention() {
  return kHopper;
}

std::span<const Kernel> attention_kernels() {
  static const std::array kernels{hopper_attention(), portable_attention()};
  return kernels;
}

}  // namespace pinion::cuda
