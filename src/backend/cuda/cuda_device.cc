#include "backend/cuda/cuda_device.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "backend/cuda/cuda_error.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/compiled_for.h"
#include "backend/cuda/kernels/convert_rows.h"
#include "backend/cuda/kernels/sample.h"
#include "backend/cuda/launch.h"
#include "backend/stream_order.h"

namespace pinion::cuda {
namespace {

class DeviceBuffer final : public Buffer {
 public:
  DeviceBuffer(int ordinal, std::byte* data, size_t size) : ordinal_(ordinal), data_(data), size_(size) {}
  ~DeviceBuffer() override {
    (void)cudaSetDevice(ordinal_);
    (void)cudaFree(data_);
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  std::byte* data() override { return data_; }
  size_t size() const override { return size_; }

 private:
  int ordinal_;
  std::byte* data_;
  size_t size_;
};

class PinnedBuffer final : public Buffer {
 public:
  PinnedBuffer(std::byte* data, size_t size) : data_(data), size_(size) {}
  ~PinnedBuffer() override { (void)cudaFreeHost(data_); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  std::byte* data() override { return data_; }
  size_t size() const override { return size_; }

 private:
  std::byte* data_;
  size_t size_;
};

int attribute(cudaDeviceAttr what, int ordinal) {
  int value = 0;
  cuda_check(cudaDeviceGetAttribute(&value, what, ordinal), "cudaDeviceGetAttribute");
  return value;
}

// Memory rate: two transfers a clock over the bus. f32: a multiply-add per core and clock, 128 cores an SM. Both are
// the vendor's ceilings, used to rank kernels; bench measures the real ones.
ProbedDevice describe(int ordinal) {
  cudaDeviceProp p{};
  cuda_check(cudaGetDeviceProperties(&p, ordinal), "cudaGetDeviceProperties");
  const double memory_khz = attribute(cudaDevAttrMemoryClockRate, ordinal);
  const double clock_khz = attribute(cudaDevAttrClockRate, ordinal);
  ProbedDevice d;
  d.info = {.backend = "cuda",
            .name = p.name,
            .isa = "sm_" + std::to_string(p.major) + std::to_string(p.minor),
            .threads = p.multiProcessorCount,
            .memory_bytes = p.totalGlobalMem};
  d.info.read_gbps = std::max(1.0, 2 * memory_khz * 1e3 * p.memoryBusWidth / 8 * 1e-9);
  d.info.f32_gflops = std::max(1.0, 2.0 * 128 * p.multiProcessorCount * clock_khz * 1e3 * 1e-9);
  d.properties = {.ordinal = ordinal,
                  .major = p.major,
                  .minor = p.minor,
                  .multiprocessors = p.multiProcessorCount,
                  .shared_per_block = p.sharedMemPerBlockOptin,
                  .l2_bytes = static_cast<size_t>(p.l2CacheSize)};
  return d;
}

class CudaDevice final : public Device, public SamplingDevice, public StreamOrderDevice, public WeightPackingDevice {
 public:
  explicit CudaDevice(ProbedDevice d) : d_(std::move(d)) {}
  const DeviceInfo& info() const override { return d_.info; }
  bool host_visible() const override { return false; }

  Result<std::unique_ptr<Buffer>> allocate(size_t bytes) override {
    activate_device(d_.properties.ordinal);
    void* p = nullptr;
    if (const cudaError_t status = cudaMalloc(&p, std::max<size_t>(bytes, 1)); status != cudaSuccess) {
      (void)cudaGetLastError();
      return fail(Errc::exhausted, "cannot allocate " + std::to_string(bytes) + " bytes of GPU memory",
                  d_.info.name + ", " + std::to_string(free_bytes()) + " bytes free",
                  "use smaller limits, or end what else uses the GPU");
    }
    return std::unique_ptr<Buffer>(
        std::make_unique<DeviceBuffer>(d_.properties.ordinal, static_cast<std::byte*>(p), bytes));
  }

  Result<std::unique_ptr<Buffer>> allocate_pinned(size_t bytes) override {
    activate_device(d_.properties.ordinal);
    void* p = nullptr;
    if (const cudaError_t status = cudaMallocHost(&p, std::max<size_t>(bytes, 1)); status != cudaSuccess) {
      (void)cudaGetLastError();
      return fail(Errc::exhausted, "cannot pin " + std::to_string(bytes) + " bytes of host memory", d_.info.name,
                  "use smaller limits, or free memory");
    }
    return std::unique_ptr<Buffer>(std::make_unique<PinnedBuffer>(static_cast<std::byte*>(p), bytes));
  }

  size_t free_bytes() const override {
    activate_device(d_.properties.ordinal);
    size_t free = 0, total = 0;
    cuda_check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return free;
  }

  void sample_rows(float* logits, const LargestLogits& largest, const RowSampling* sampling,
                   const SamplingMemory& memory, const SampledTokens& to, int64_t rows, int64_t vocab,
                   Stream& stream) override {
    cuda::sample_rows({logits, largest, sampling, memory, to, static_cast<int32_t>(vocab)}, rows, stream);
  }

  bool launch_head(const Kernel& kernel, const LaunchArgs& args, const LargestLogits& largest,
                   Stream& stream) override {
    return linear_head(kernel, args, largest, stream);
  }

  void convert_rows(const RowConversion& rows, Stream& stream) override { cuda::convert_rows(rows, stream); }

  // The wait takes the event as it is now, so the event need not outlive this call.
  void run_after(Stream& later, Stream& earlier) override {
    activate_device(d_.properties.ordinal);
    cudaEvent_t event = nullptr;
    cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    cudaError_t status = cudaEventRecord(event, cuda_stream(earlier).handle());
    if (status == cudaSuccess) status = cudaStreamWaitEvent(cuda_stream(later).handle(), event, 0);
    (void)cudaEventDestroy(event);
    cuda_check(status, "ordering two streams");
  }

  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CudaStream>(d_.properties); }

 private:
  ProbedDevice d_;
};

}  // namespace

std::vector<ProbedDevice> probe_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return {};
  }
  std::vector<ProbedDevice> devices;
  for (int i = 0; i < std::min(count, kMaxDevices); ++i) devices.push_back(describe(i));
  return devices;
}

Result<std::unique_ptr<Device>> open_device(int ordinal) {
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    (void)cudaGetLastError();
    return fail(Errc::unsupported, "no GPU can be used: " + describe_failure("cudaGetDeviceCount", status),
                "--target cuda", "install NVIDIA's driver, or use --target cpu; `pinion doctor` says what is there");
  }
  if (ordinal < 0 || ordinal >= std::min(count, kMaxDevices)) {
    return fail(Errc::not_found, "there is no GPU " + std::to_string(ordinal), "--target cuda",
                "there are " + std::to_string(count) + ", counted from 0");
  }
  try {
    activate_device(ordinal);
    ProbedDevice device = describe(ordinal);
    if (const cudaError_t status = kernels_present(); status != cudaSuccess) {
      (void)cudaGetLastError();
      return fail(Errc::unsupported, "this Pinion has no kernels for " + device.info.isa, device.info.name,
                  "build it with -DPINION_CUDA_ARCHS naming that architecture, or with ./run build --cuda --all_arch");
    }
    return std::unique_ptr<Device>(std::make_unique<CudaDevice>(std::move(device)));
  } catch (const CudaError& e) {
    return fail(Errc::internal, e.what(), "GPU " + std::to_string(ordinal), "`pinion doctor` says what is there");
  }
}

}  // namespace pinion::cuda
