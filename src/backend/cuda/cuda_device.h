// One NVIDIA GPU: its memory, pinned host memory, its streams.
#pragma once

#include <optional>

#include "backend/backend.h"
#include "backend/cuda/cuda_stream.h"

namespace pinion::cuda {

struct ProbedDevice {
  DeviceInfo info;  // isa "sm_90"; threads: SMs; read_gbps from the memory's clock and bus, an upper bound
  DeviceProperties properties;
};

// The GPUs that the driver shows, in its order; empty without a driver or a GPU.
std::vector<ProbedDevice> probe_devices();

// Errors: unsupported when there is no driver, or when these kernels were not compiled for the GPU's architecture;
// not_found for an ordinal that does not exist.
Result<std::unique_ptr<Device>> open_device(int ordinal);

}  // namespace pinion::cuda
