// A CUDA stream with what launches ask of its device. Not thread-safe: one thread uses a stream at a time.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <utility>

#include "backend/backend.h"

namespace pinion::cuda {

struct DeviceProperties {
  int ordinal = 0;
  int major = 0, minor = 0;     // compute capability: 9, 0 for the H100 and H200
  int multiprocessors = 1;      // SMs
  size_t shared_per_block = 0;  // bytes, after opting in
  size_t l2_bytes = 0;
  // Programmatic dependent launch: a kernel may start while the one before it drains (CUDA programming guide).
  bool dependent_launch() const { return major >= 9; }
};

void activate_device(int ordinal);  // makes it the calling thread's; throws CudaError

class CudaStream final : public Stream {
 public:
  explicit CudaStream(const DeviceProperties& device);
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void synchronize() override;
  uint64_t mark() override;
  void wait(uint64_t mark) override;
  double seconds_between(uint64_t from, uint64_t to) override;
  void copy_to_device(void* to, const void* host, size_t bytes) override;
  void copy_to_host(void* host, const void* from, size_t bytes) override;
  void copy_on_device(void* to, const void* from, size_t bytes) override;
  void fill(void* to, uint8_t value, size_t bytes) override;
  void upload(const Upload& upload) override;
  bool begin_recording() override;
  std::unique_ptr<Recording> end_recording() override;

  cudaStream_t handle() const { return handle_; }
  // Device memory, kTickets numbers that are zero whenever no kernel of the stream runs: blocks of a kernel count there
  // who finishes last, and the last one leaves zeros.
  static constexpr unsigned kTickets = 1024;
  unsigned* tickets() const { return tickets_; }
  const DeviceProperties& device() const { return device_; }
  void activate() const { activate_device(device_.ordinal); }
  // Whether the kernel launched now has to follow what was taken before it whole, without dependent launch: asked once.
  bool take_whole() { return std::exchange(whole_, false); }

 private:
  DeviceProperties device_;
  cudaStream_t handle_ = nullptr;
  unsigned* tickets_ = nullptr;
  std::array<cudaEvent_t, kMarks> marks_{};
  uint64_t marked_ = 0;
  bool recording_ = false, begins_with_upload_ = false, whole_ = false;
};

inline CudaStream& cuda_stream(Stream& stream) {
  return static_cast<CudaStream&>(stream);
}

}  // namespace pinion::cuda
