#include "backend/reference/kernel_list.h"

#include <array>

namespace pinion {
namespace {

// Any shape; the weights must be dense floats, but for the matrices of linears, experts and embeddings.
std::string why_not(const Call& call, const DeviceInfo&) {
  const Op& op = *call.op;
  const bool packed =
      std::holds_alternative<Linear>(op) || std::holds_alternative<MoeLinear>(op) || std::holds_alternative<Embed>(op);
  for (const WeightSpec& w : call.weights) {
    if (!is_float(w.dtype)) return "reads float weights, not " + std::string(name(w.dtype));
    if (packed) continue;
    if (w.layout != Layout::row_major) return "reads row_major weights, not " + std::string(name(w.layout));
  }
  const bool latent = std::holds_alternative<MlaKvWrite>(*call.op) || std::holds_alternative<MlaAttention>(*call.op);
  if (latent && !is_float(call.kv_dtype)) return "reads a float KV cache, not " + std::string(name(call.kv_dtype));
  return why_not_f32_values(call);
}

// About 1 ns per multiply-add: only its being far behind every other kernel matters.
double estimate_us(const Call& call, const Tuning&, const DeviceInfo&) {
  double macs = static_cast<double>(call.rows) * 1024;
  for (const WeightSpec& w : call.weights) macs += static_cast<double>(call.rows) * w.rows * w.cols;
  if (const auto* a = std::get_if<Attention>(call.op)) {
    macs += 2.0 * static_cast<double>(call.rows) * call.context * a->heads * a->head_dim;
  }
  return 10 + macs * 1e-3;
}

constexpr Kernel row(std::string_view name, OpKind op, void (*launch)(const LaunchArgs&, Stream&)) {
  return {.name = name,
          .op = op,
          .why_not = why_not,
          .tunings = nullptr,
          .estimate_us = estimate_us,
          .workspace = nullptr,
          .launch = launch};
}

constexpr std::array kKernels = {
    row("reference.embed", OpKind::embed, reference::embed),
    row("reference.linear", OpKind::linear, reference::linear),
    row("reference.rms_norm", OpKind::rms_norm, reference::rms_norm),
    row("reference.rope", OpKind::rope, reference::rope),
    row("reference.attention", OpKind::attention, reference::attention),
    row("reference.gated_act", OpKind::gated_act, reference::gated_act),
    row("reference.add", OpKind::add, reference::add),
    row("reference.select_rows", OpKind::select_rows, reference::select_rows),
    row("reference.add_rms_norm", OpKind::add_rms_norm, reference::add_rms_norm),
    row("reference.rope_kv_write", OpKind::rope_kv_write, reference::rope_kv_write),
    row("reference.layer_norm", OpKind::layer_norm, reference::layer_norm),
    row("reference.act", OpKind::act, reference::act),
    row("reference.soft_cap", OpKind::soft_cap, reference::soft_cap),
    row("reference.moe_route", OpKind::moe_route, reference::moe_route),
    row("reference.moe_linear", OpKind::moe_linear, reference::moe_linear),
    row("reference.moe_combine", OpKind::moe_combine, reference::moe_combine),
    row("reference.mla_kv_write", OpKind::mla_kv_write, reference::mla_kv_write),
    row("reference.mla_attention", OpKind::mla_attention, reference::mla_attention),
};
static_assert(kKernels.size() == kOpKinds, "an op has exactly one reference kernel, in the order of OpKind");

}  // namespace

std::span<const Kernel> reference_kernels(OpKind kind) {
  return {&kKernels[static_cast<size_t>(kind)], 1};
}

}  // namespace pinion
