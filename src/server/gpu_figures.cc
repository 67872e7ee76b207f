#include "server/gpu_figures.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <fstream>

namespace pinion {
namespace {

// The few entry points of NVML's stable C interface ("NVML API Reference Guide"); 0 is success.
struct Nvml {
  struct Utilization {
    unsigned gpu, memory;  // percent
  };
  struct Memory {
    unsigned long long total, free, used;
  };
  using Device = void*;
  int (*init)() = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*handle)(unsigned, Device*) = nullptr;
  int (*uuid)(Device, char*, unsigned) = nullptr;
  int (*utilization)(Device, Utilization*) = nullptr;
  int (*memory)(Device, Memory*) = nullptr;
  bool ready = false;

  Nvml() {
    void* library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(library, name));
      return function != nullptr;
    };
    ready = find(init, "nvmlInit_v2") && find(count, "nvmlDeviceGetCount_v2") &&
            find(handle, "nvmlDeviceGetHandleByIndex_v2") && find(uuid, "nvmlDeviceGetUUID") &&
            find(utilization, "nvmlDeviceGetUtilizationRates") && find(memory, "nvmlDeviceGetMemoryInfo") &&
            init() == 0;
  }
};

}  // namespace

std::vector<GpuFigures> gpu_figures() {
  static const Nvml nvml;  // kept until the process ends
  std::vector<GpuFigures> out;
  unsigned devices = 0;
  if (!nvml.ready || nvml.count(&devices) != 0) return out;
  for (unsigned i = 0; i < devices; ++i) {
    Nvml::Device device = nullptr;
    std::array<char, 96> uuid{};
    Nvml::Utilization busy{};
    Nvml::Memory memory{};
    if (nvml.handle(i, &device) != 0 || nvml.uuid(device, uuid.data(), uuid.size()) != 0) continue;
    if (nvml.memory(device, &memory) != 0) continue;
    (void)nvml.utilization(device, &busy);  // not known where a GPU is divided (MIG): 0
    out.push_back({.uuid = uuid.data(),
                   .utilization = busy.gpu / 100.0,
                   .memory_total = memory.total,
                   .memory_used = memory.used});
  }
  return out;
}

uint64_t process_memory_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

uint64_t host_memory_bytes() {
  return static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace pinion
