#include "backend/reference/reference_backend.h"

#include <unistd.h>

#include <cstdlib>
#include <new>

#include "backend/reference/kernel_list.h"

namespace pinion {
namespace {

constexpr size_t kAlignment = 64;

class ReferenceBuffer final : public Buffer {
 public:
  ReferenceBuffer(std::byte* data, size_t size) : data_(data), size_(size) {}
  ~ReferenceBuffer() override { std::free(data_); }
  std::byte* data() override { return data_; }
  size_t size() const override { return size_; }

 private:
  std::byte* data_;
  size_t size_;
};

class ReferenceStream final : public Stream {
 public:
  void synchronize() override {}  // launch returns when the work is done
};

DeviceInfo describe() {
  DeviceInfo info{.backend = "reference",
                  .name = "scalar reference kernels, 1 thread",
                  .isa = "scalar",
                  .threads = 1,
                  .memory_bytes = 0,
                  .read_gbps = 1,
                  .f32_gflops = 1};
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) info.memory_bytes = static_cast<size_t>(pages) * static_cast<size_t>(page);
  return info;
}

class ReferenceDevice final : public Device {
 public:
  const DeviceInfo& info() const override { return info_; }

  Result<std::unique_ptr<Buffer>> allocate(size_t bytes) override {
    const size_t rounded = bytes > SIZE_MAX - kAlignment ? 0 : (bytes + kAlignment) / kAlignment * kAlignment;
    auto* p = rounded == 0 ? nullptr : static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (p == nullptr) {
      return fail(Errc::exhausted, "cannot allocate " + std::to_string(bytes) + " bytes", "reference backend",
                  "use a smaller model or smaller limits");
    }
    return std::unique_ptr<Buffer>(std::make_unique<ReferenceBuffer>(p, bytes));
  }

  std::unique_ptr<Stream> make_stream() override { return std::make_unique<ReferenceStream>(); }

 private:
  DeviceInfo info_ = describe();
};

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::vector<DeviceInfo> probe() const override { return {describe()}; }

  Result<std::unique_ptr<Device>> open(const DeviceOptions& options) const override {
    if (options.ordinal != 0) {
      return fail(Errc::invalid_argument,
                  "the reference backend has device 0 only, not " + std::to_string(options.ordinal));
    }
    return std::unique_ptr<Device>(std::make_unique<ReferenceDevice>());
  }

  std::span<const Kernel> kernels(OpKind kind) const override { return reference_kernels(kind); }
};

}  // namespace

const Backend& reference_backend() {
  static const ReferenceBackend backend;
  return backend;
}

}  // namespace pinion
