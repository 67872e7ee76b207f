#include "backend/cpu/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_stream.h"

namespace pinion::cpu {
namespace {

double seconds_of(const auto& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// 1, 2, 4 … and the number itself: bandwidth is often full before the last thread.
std::vector<int> thread_counts(int threads) {
  std::vector<int> counts;
  for (int n = 1; n < threads; n *= 2) counts.push_back(n);
  counts.push_back(threads);
  return counts;
}

}  // namespace

Result<Ceilings> measure_ceilings(const DeviceOptions& options, size_t bytes) {
  PINION_TRY(auto device, cpu_backend().open(options));
  const IsaKernels* isa = find_isa(device->info().isa);
  check(isa != nullptr, "an open device has an ISA");
  const int threads = device->info().threads;
  constexpr size_t kPiece = 16 << 10;
  bytes = std::max<size_t>(bytes / kPiece, threads) * kPiece;
  PINION_TRY(auto buffer, device->allocate(bytes));
  std::byte* data = buffer->data();
  Ceilings best;
  std::vector<float> sums(threads);  // keep the work from being optimised away

  for (int n : thread_counts(threads)) {
    ThreadPool pool(n);
    const int64_t share = static_cast<int64_t>(bytes / n / kPiece * kPiece);
    if (n == 1) std::memset(data, 0, bytes);  // untouched pages would all be the one zero page
    for (const auto& [streams, prefetch] : {std::pair{1, false}, {4, false}, {8, false}, {1, true}, {4, true}}) {
      const double s = seconds_of(
          [&] { pool.run(n, [&](int64_t i) { sums[i] = isa->read(data + i * share, share, streams, prefetch); }); });
      const double gbps = static_cast<double>(share) * n / s * 1e-9;
      if (gbps > best.read_gbps) best.read_gbps = gbps, best.read_threads = n;
    }
  }

  ThreadPool pool(threads);
  constexpr int64_t kRounds = 4'000'000;
  for (int i = 0; i < 5; ++i) {
    const double s = seconds_of([&] { pool.run(threads, [&](int64_t i) { sums[i] = isa->multiply_add(kRounds); }); });
    best.f32_gflops = std::max(best.f32_gflops, 2.0 * 12 * isa->lanes * kRounds * threads / s * 1e-9);
  }
  return best;
}

}  // namespace pinion::cpu
