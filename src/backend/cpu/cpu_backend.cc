#include "backend/cpu/cpu_backend.h"

#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstring>
#include <fstream>

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"

namespace pinion {
namespace {

using cpu::IsaKernels;

constexpr int kMaxThreads = 1024;

// Pages appear when they are first touched, so that a KV pool of the full limits costs nothing until it is used.
class CpuBuffer final : public Buffer {
 public:
  CpuBuffer(std::byte* data, size_t mapped, size_t size) : data_(data), mapped_(mapped), size_(size) {}
  ~CpuBuffer() override { munmap(data_, mapped_); }
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;
  std::byte* data() override { return data_; }
  size_t size() const override { return size_; }

 private:
  std::byte* data_;
  size_t mapped_, size_;
};

std::string processor_name() {
#if defined(__x86_64__)
  unsigned regs[12] = {};
  if (__get_cpuid_max(0x80000000u, nullptr) >= 0x80000004u) {
    for (unsigned i = 0; i < 3; ++i) {
      __get_cpuid(0x80000002u + i, &regs[4 * i], &regs[4 * i + 1], &regs[4 * i + 2], &regs[4 * i + 3]);
    }
    char text[sizeof(regs) + 1] = {};
    std::memcpy(text, regs, sizeof(regs));
    std::string name = text;
    name.erase(0, std::min(name.find_first_not_of(' '), name.size()));
    if (!name.empty()) return name;
  }
#endif
  return "processor";
}

// The machine's memory, or the container's limit where that is less.
size_t memory_bytes() {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  size_t bytes = pages > 0 && page > 0 ? static_cast<size_t>(pages) * static_cast<size_t>(page) : 0;
  std::ifstream limit("/sys/fs/cgroup/memory.max");  // "max" or a number
  if (size_t n = 0; limit >> n && n > 0) bytes = bytes == 0 ? n : std::min(bytes, n);
  return bytes;
}

// The rates are for ranking kernels only: a core reads about 12 GB/s and all together about 150; two multiply-adds a
// cycle at 2.5 GHz.
DeviceInfo describe(const IsaKernels& isa, int threads) {
  DeviceInfo info{.backend = "cpu", .isa = std::string(isa.name), .threads = threads, .memory_bytes = memory_bytes()};
  info.name = processor_name() + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
  info.read_gbps = std::min(12.0 * threads, 150.0);
  info.f32_gflops = 2.5 * 4 * static_cast<double>(isa.lanes) * threads;
  return info;
}

class CpuDevice final : public Device {
 public:
  CpuDevice(const IsaKernels& isa, int threads) : isa_(&isa), info_(describe(isa, threads)) {}
  const DeviceInfo& info() const override { return info_; }

  Result<std::unique_ptr<Buffer>> allocate(size_t bytes) override {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t mapped = bytes > SIZE_MAX - page ? 0 : (std::max<size_t>(bytes, 1) + page - 1) / page * page;
    void* p = mapped == 0
                  ? MAP_FAILED
                  : mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      return fail(Errc::exhausted, "cannot allocate " + std::to_string(bytes) + " bytes of memory", info_.name,
                  "use smaller limits, or free memory");
    }
    madvise(p, mapped, MADV_HUGEPAGE);  // best effort: fewer TLB misses over gigabytes of weights
    return std::unique_ptr<Buffer>(std::make_unique<CpuBuffer>(static_cast<std::byte*>(p), mapped, bytes));
  }

  std::unique_ptr<Stream> make_stream() override { return std::make_unique<cpu::CpuStream>(*isa_, info_.threads); }

 private:
  const IsaKernels* isa_;
  DeviceInfo info_;
};

class CpuBackend final : public Backend {
 public:
  std::string_view name() const override { return "cpu"; }

  std::vector<DeviceInfo> probe() const override { return {describe(*cpu::available_isas()[0], available_cpus())}; }

  Result<std::unique_ptr<Device>> open(const DeviceOptions& options) const override {
    if (options.ordinal != 0) {
      return fail(Errc::invalid_argument, "the CPU is device 0, not " + std::to_string(options.ordinal));
    }
    if (options.threads < 0 || options.threads > kMaxThreads) {
      return fail(Errc::invalid_argument, "the number of threads must be 0 (all) to " + std::to_string(kMaxThreads) +
                                              ", not " + std::to_string(options.threads));
    }
    const IsaKernels* isa = options.isa.empty() ? cpu::available_isas()[0] : cpu::find_isa(options.isa);
    if (isa == nullptr) {
      std::string have;
      for (const IsaKernels* i : cpu::available_isas()) have += (have.empty() ? "" : ", ") + std::string(i->name);
      return fail(Errc::invalid_argument, "no kernels for the ISA \"" + options.isa + "\" run here", processor_name(),
                  "use one of " + have);
    }
    return std::unique_ptr<Device>(
        std::make_unique<CpuDevice>(*isa, options.threads > 0 ? options.threads : available_cpus()));
  }

  std::span<const Kernel> kernels(OpKind kind) const override { return cpu::kernels(kind); }
};

}  // namespace

const Backend& cpu_backend() {
  static const CpuBackend backend;
  return backend;
}

}  // namespace pinion
