// The CPU's stream: a thread pool and the ISA's kernel table. A launch returns when its work is done.
#pragma once

#include <algorithm>
#include <atomic>

#include "backend/backend.h"
#include "backend/cpu/isa.h"
#include "base/thread_pool.h"

namespace pinion::cpu {

class CpuStream final : public Stream {
 public:
  CpuStream(const IsaKernels& isa, int threads) : isa_(&isa), pool_(threads) {}
  void synchronize() override {}

  const IsaKernels& isa() const { return *isa_; }
  int threads() const { return pool_.size(); }

  // f(i) for i in [0, n), over the threads.
  template <class F>
  void run(int64_t n, F&& f) {
    pool_.run(n, f);
  }

  // f(slot, i) for i in [0, n); no two calls with one slot in [0, threads) overlap, so a slot may own scratch.
  template <class F>
  void run_slots(int64_t n, F&& f) {
    std::atomic<int64_t> next{0};
    pool_.run(std::min<int64_t>(n, threads()), [&](int64_t slot) {
      for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) f(slot, i);
    });
  }

  // f(first, last) over ranges of [0, n). Work of less than about 10 µs stays on this thread: waking the others costs
  // more. `cost` is the work of one item in elements read and written, at about 8 elements a nanosecond and core.
  template <class F>
  void run_ranges(int64_t n, int64_t cost, F&& f) {
    constexpr int64_t kSmall = 64 * 1024;
    const int64_t parts = std::min<int64_t>({n, static_cast<int64_t>(threads()), 1 + n * cost / kSmall});
    if (parts <= 1) {
      if (n > 0) f(int64_t{0}, n);
      return;
    }
    pool_.run(parts, [&](int64_t i) { f(n * i / parts, n * (i + 1) / parts); });
  }

 private:
  const IsaKernels* isa_;
  ThreadPool pool_;
};

inline CpuStream& cpu_stream(Stream& stream) {
  return static_cast<CpuStream&>(stream);
}

}  // namespace pinion::cpu
