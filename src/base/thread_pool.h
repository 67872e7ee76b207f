// A persistent pool for kernels: run(n, f) calls f(i) for every i in [0, n), one i per thread first and the rest by
// work stealing from a shared counter, and returns when all are done. Workers spin a little before they sleep, because
// a decode step issues hundreds of regions of tens of microseconds each.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace pinion {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // total, the caller included; at least 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // One region at a time: only the thread that owns the stream calls run. F is void(int64_t i).
  template <class F>
  void run(int64_t n, F&& f) {
    if (n <= 0) return;
    if (n == 1 || workers_.empty()) {
      for (int64_t i = 0; i < n; ++i) f(i);
      return;
    }
    using Fn = std::remove_reference_t<F>;
    run_region(n, const_cast<void*>(static_cast<const void*>(&f)),
               [](void* context, int64_t i) { (*static_cast<Fn*>(context))(i); });
  }

 private:
  using Body = void (*)(void*, int64_t);
  void run_region(int64_t n, void* context, Body body);
  void work(int64_t n, void* context, Body body);
  void worker_main();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};  // a new region begins
  std::atomic<int64_t> next_{0};    // next index to take
  std::atomic<int> running_{0};     // workers inside the current region
  std::atomic<bool> stop_{false};
  std::atomic<int> sleeping_{0};
  int64_t n_ = 0;
  void* context_ = nullptr;
  Body body_ = nullptr;
};

// Physical parallelism this process may use: the affinity mask and the cgroup CPU quota, at least 1.
int available_cpus();

}  // namespace pinion
