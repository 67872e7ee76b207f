#include "backend/cpu/kernel_list.h"

#include <initializer_list>
#include <vector>

namespace pinion::cpu {
namespace {

std::vector<Kernel> joined(std::initializer_list<std::span<const Kernel>> lists) {
  std::vector<Kernel> all;
  for (const auto list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

}  // namespace

std::span<const Kernel> kernels(OpKind kind) {
  switch (kind) {
    case OpKind::linear: {
      static const auto all = joined({linear_kernels(), linear_matrix_kernels(), packed_kernels(kind)});
      return all;
    }
    case OpKind::embed: {
      static const auto all = joined({row_kernels(kind), packed_kernels(kind)});
      return all;
    }
    case OpKind::attention:
      return attention_kernels();
    case OpKind::moe_route:
    case OpKind::moe_linear:
    case OpKind::moe_combine:
      return moe_kernels(kind);
    case OpKind::mla_kv_write:
    case OpKind::mla_attention:
      return mla_kernels(kind);
    default:
      return row_kernels(kind);
  }
}

std::string why_not_floats(const Call& call) {
  for (const WeightSpec& w : call.weights) {
    if (!is_float(w.dtype)) return "reads float weights, not " + std::string(name(w.dtype));
    if (w.layout != Layout::row_major) return "reads row_major weights, not " + std::string(name(w.layout));
  }
  const bool latent = std::holds_alternative<MlaKvWrite>(*call.op) || std::holds_alternative<MlaAttention>(*call.op);
  if (latent && !is_float(call.kv_dtype)) return "reads a float KV cache, not " + std::string(name(call.kv_dtype));
  return why_not_f32_values(call);
}

}  // namespace pinion::cpu
