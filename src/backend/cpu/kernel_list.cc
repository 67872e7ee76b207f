#include "backend/cpu/kernel_list.h"

#include <vector>

namespace pinion::cpu {
namespace {

std::vector<Kernel> all_linear_kernels() {
  std::vector<Kernel> all;
  for (const auto list : {linear_kernels(), linear_matrix_kernels()}) all.insert(all.end(), list.begin(), list.end());
  return all;
}

}  // namespace

std::span<const Kernel> kernels(OpKind kind) {
  switch (kind) {
    case OpKind::linear: {
      static const std::vector<Kernel> all = all_linear_kernels();
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
  if (!is_float(call.kv_dtype)) return "reads a float KV cache, not " + std::string(name(call.kv_dtype));
  return why_not_f32_values(call);
}

}  // namespace pinion::cpu
