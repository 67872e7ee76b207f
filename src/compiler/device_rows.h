// Rows of a weight converted by the device: raw rows go up through pinned memory, packed ones come back into the
// caller's. One piece at a time; several of these take turns, so that one is filled while another one's copies run.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "backend/backend.h"
#include "backend/weight_packing.h"
#include "base/thread_pool.h"
#include "compiler/dense_weight.h"

namespace pinion {

class DeviceRows {
 public:
  // Null where the device does not convert rows. Pieces may have up to `most` bytes, as they are and as packed. Borrows
  // the device. Errors: exhausted.
  static Result<std::unique_ptr<DeviceRows>> create(Device& device, size_t most);
  ~DeviceRows();
  DeviceRows(const DeviceRows&) = delete;
  DeviceRows& operator=(const DeviceRows&) = delete;

  // Whether a device with this ability is given the weight: one of another float type, and no vector.
  static bool packs(const DenseWeight& weight);
  // The most rows of `weight` in one piece; 0: the host packs it.
  static int64_t most_rows(const DenseWeight& weight, size_t most);
  // Begins to pack rows [first, first + n) to `out`, which stays until wait() returns and is best pinned. Throws
  // DeviceError.
  void start(const DenseWeight& weight, int64_t first, int64_t n, std::span<std::byte> out, ThreadPool& pool);
  bool wait();  // false: some value is beyond float16. Throws DeviceError.

 private:
  DeviceRows(WeightPackingDevice& packing, std::unique_ptr<Stream> stream)
      : packing_(packing), stream_(std::move(stream)) {}

  WeightPackingDevice& packing_;
  std::unique_ptr<Buffer> raw_host_, raw_, packed_, overflow_, overflow_host_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace pinion
