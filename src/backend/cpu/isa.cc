#include "backend/cpu/isa.h"

#include <vector>

namespace pinion::cpu {
namespace {

std::vector<const IsaKernels*> detect() {
  std::vector<const IsaKernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512) found.push_back(&kAvx512);
  if (avx2) found.push_back(&kAvx2);
#endif
  found.push_back(&kScalar);
  return found;
}

}  // namespace

std::span<const IsaKernels* const> available_isas() {
  static const std::vector<const IsaKernels*> list = detect();
  return list;
}

const IsaKernels* find_isa(std::string_view name) {
  for (const IsaKernels* isa : available_isas()) {
    if (isa->name == name) return isa;
  }
  return nullptr;
}

}  // namespace pinion::cpu
