#include "backend/all/ceilings.h"

#include "backend/cpu/ceilings.h"
#ifdef PINION_WITH_CUDA
#include "backend/cuda/ceilings.h"
#endif

namespace pinion {

Result<DeviceCeilings> measure_ceilings(Device& device, const DeviceOptions& options, size_t bytes) {
#ifdef PINION_WITH_CUDA
  if (device.info().backend == "cuda") {
    PINION_TRY(const cuda::Ceilings c, cuda::measure_ceilings(device, bytes));
    return DeviceCeilings{.read_gbps = c.read_gbps, .matrix_gflops = c.matrix_gflops};
  }
#endif
  if (!device.host_visible()) {
    return fail(Errc::unsupported, "the ceilings of this device are not measured", device.info().name);
  }
  PINION_TRY(const cpu::Ceilings c, cpu::measure_ceilings(options, bytes));
  return DeviceCeilings{.read_gbps = c.read_gbps,
                        .f32_gflops = c.f32_gflops,
                        .matrix_gflops = c.matrix_gflops,
                        .read_threads = c.read_threads};
}

}  // namespace pinion
