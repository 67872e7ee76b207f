#include "backend/cuda/cuda_backend.h"

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/cuda_error.h"
#include "backend/cuda/kernel_list.h"

namespace pinion {
namespace {

class CudaBackend final : public Backend {
 public:
  std::string_view name() const override { return "cuda"; }

  std::vector<DeviceInfo> probe() const override {
    std::vector<DeviceInfo> infos;
    try {
      for (cuda::ProbedDevice& d : cuda::probe_devices()) infos.push_back(std::move(d.info));
    } catch (const cuda::CudaError&) {
      infos.clear();  // a driver that answers once and then fails: open() says how
    }
    return infos;
  }

  Result<std::unique_ptr<Device>> open(const DeviceOptions& options) const override {
    return cuda::open_device(options.ordinal);
  }

  std::span<const Kernel> kernels(OpKind kind) const override { return cuda::kernels(kind); }

  // Values travel in the weights' type: sums are f32 in every kernel, only what passes between ops is narrow.
  DType value_dtype(DType weights) const override {
    return weights == DType::bf16 || weights == DType::f16 ? weights : DType::f32;
  }
};

}  // namespace

const Backend& cuda_backend() {
  static const CudaBackend backend;
  return backend;
}

}  // namespace pinion
