// What the NVIDIA driver says of the machine's GPUs, for metrics: read through NVML, which is loaded when first asked
// for, so that a machine without a driver needs nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pinion {

struct GpuFigures {
  std::string uuid;                            // "GPU-…"
  double utilization = 0;                      // 0 to 1: the part of the last sampling period in which a kernel ran
  uint64_t memory_total = 0, memory_used = 0;  // bytes
};

// Empty without an NVIDIA driver. Thread-safe; takes well under a millisecond a GPU.
std::vector<GpuFigures> gpu_figures();

// Bytes of this process that are in memory (VmRSS), and the host's memory; 0 when /proc does not say.
uint64_t process_memory_bytes();
uint64_t host_memory_bytes();

}  // namespace pinion
