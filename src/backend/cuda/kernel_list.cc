#include "backend/cuda/kernel_list.h"

#include <array>
#include <vector>

namespace pinion::cuda {

std::span<const Kernel> kernels(OpKind kind) {
  static const auto by_op = [] {
    std::array<std::vector<Kernel>, kOpKinds> lists;
    for (const auto list : {row_kernels(), norm_kernels(), rope_kernels(), linear_kernels(), attention_kernels(),
                            moe_kernels(), mla_kernels(), reference_kernels()}) {
      for (const Kernel& k : list) lists[static_cast<size_t>(k.op)].push_back(k);
    }
    return lists;
  }();
  return by_op[static_cast<size_t>(kind)];
}

std::string why_not_floats(const Call& call) {
  for (const WeightSpec& w : call.weights) {
    if (!is_float(w.dtype)) return "reads float weights, not " + std::string(name(w.dtype));
    if (w.layout != Layout::row_major) return "reads row_major weights, not " + std::string(name(w.layout));
  }
  if (!is_float(call.kv_dtype)) return "reads a float KV cache, not " + std::string(name(call.kv_dtype));
  return {};
}

}  // namespace pinion::cuda
