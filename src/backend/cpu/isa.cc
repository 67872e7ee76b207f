#include "backend/cpu/isa.h"

#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pinion::cpu {
namespace {

#if defined(__x86_64__)
// The tiles are state that Linux keeps for a process once it has asked (Documentation/arch/x86/xstate.rst).
bool amx_permitted() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBf16) == 0 || (d & kTiles) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<const IsaKernels*> detect() {
  std::vector<const IsaKernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && amx_permitted()) {
    static const IsaKernels amx = with_amx(kAvx512);
    found.push_back(&amx);
  }
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
