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
  constexpr size_t kPiece = 64 << 10;
  bytes = std::max<size_t>(bytes / kPiece, threads) * kPiece;
  PINION_TRY(auto buffer, device->allocate(bytes));
  std::byte* data = buffer->data();
  Ceilings best;
  std::vector<float> sums(threads);  // keep the work from being optimised away

  // Pieces are handed out as threads become free, as kernels do it: a delayed thread must not set the figure.
  std::memset(data, 0, bytes);  // untouched pages would all be the one zero page
  for (int n : thread_counts(threads)) {
    CpuStream stream(*isa, n);
    for (const auto& [streams, prefetch] : {std::pair{1, false}, {4, false}, {8, false}, {1, true}, {4, true}}) {
      const double s = seconds_of([&] {
        stream.run_slots(static_cast<int64_t>(bytes / kPiece), [&](int64_t slot, int64_t i) {
          sums[slot] = isa->read(data + i * kPiece, kPiece, streams, prefetch);
        });
      });
      const double gbps = static_cast<double>(bytes / kPiece * kPiece) / s * 1e-9;
      if (gbps > best.read_gbps) best.read_gbps = gbps, best.read_threads = n;
    }
  }

  ThreadPool pool(threads);
  constexpr int64_t kRounds = 8'000'000, kMatrixRounds = 1'000'000;
  for (int i = 0; i < 8; ++i) {
    const double s = seconds_of([&] { pool.run(threads, [&](int64_t i) { sums[i] = isa->multiply_add(kRounds); }); });
    best.f32_gflops = std::max(best.f32_gflops, 2.0 * 12 * isa->lanes * kRounds * threads / s * 1e-9);
    if (isa->matrix_multiply == nullptr) continue;
    const double matrix_s =
        seconds_of([&] { pool.run(threads, [&](int64_t i) { sums[i] = isa->matrix_multiply(kMatrixRounds); }); });
    // 16 x 16 x 32 products a tile, four tiles a round; a third of them, for an f32 of x is three terms.
    constexpr double kOperations = 2.0 * 16 * 16 * 32 * 4 / 3;
    best.matrix_gflops = std::max(best.matrix_gflops, kOperations * kMatrixRounds * threads / matrix_s * 1e-9);
  }
  return best;
}

}  // namespace pinion::cpu
