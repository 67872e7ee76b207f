#include "compiler/device_rows.h"

#include <algorithm>
#include <cstring>

namespace pinion {
namespace {

constexpr size_t kRunAlign = 16;                  // of a run of rows of one part among the raw ones
constexpr size_t kGatherBytes = size_t{1} << 20;  // what a thread copies at a time

size_t align_run(size_t n) {
  return (n + kRunAlign - 1) / kRunAlign * kRunAlign;
}

}  // namespace

Result<std::unique_ptr<DeviceRows>> DeviceRows::create(Device& device, size_t most) {
  auto* packing = dynamic_cast<WeightPackingDevice*>(&device);
  if (packing == nullptr) return std::unique_ptr<DeviceRows>();
  auto rows = std::unique_ptr<DeviceRows>(new DeviceRows(*packing, device.make_stream()));
  PINION_TRY(rows->raw_host_, device.allocate_pinned(most));
  PINION_TRY(rows->raw_, device.allocate(most));
  PINION_TRY(rows->packed_, device.allocate(most));
  PINION_TRY(rows->overflow_, device.allocate(sizeof(uint32_t)));
  PINION_TRY(rows->overflow_host_, device.allocate_pinned(sizeof(uint32_t)));
  return rows;
}

DeviceRows::~DeviceRows() {
  try {
    stream_->synchronize();          // copies may be under way after an error
  } catch (const std::exception&) {  // of what failed, whoever waited has heard
  }
}

bool DeviceRows::packs(const DenseWeight& weight) {
  return weight.converts() && weight.rows() * weight.row_bytes() >= kGatherBytes;
}

int64_t DeviceRows::most_rows(const DenseWeight& weight, size_t most) {
  if (!packs(weight)) return 0;
  // A raw element has at most four bytes; every part may begin at an aligned place.
  const size_t row = static_cast<size_t>(weight.cols()) * 4, gaps = weight.parts() * kRunAlign;
  return most < gaps ? 0 : static_cast<int64_t>((most - gaps) / row);
}

void DeviceRows::start(const DenseWeight& weight, int64_t first, int64_t n, std::span<std::byte> out,
                       ThreadPool& pool) {
  struct Task {
    const WeightSource* source;
    int64_t row, rows;
    size_t bytes;  // of a row
    std::byte* to;
  };
  std::vector<Task> tasks;
  std::vector<RowConversion> conversions;
  size_t at = 0;
  for (const RowRun& run : weight.runs(first, n)) {
    const WeightSource* source = weight.stored(run.part);
    const DType type = source->tensor().dtype;
    const size_t row = static_cast<size_t>(weight.cols()) * byte_size(type);
    const auto most = std::max<int64_t>(1, static_cast<int64_t>(kGatherBytes / row));
    for (int64_t i = 0; i < run.rows; i += most) {
      tasks.push_back({source, run.from + i, std::min(most, run.rows - i), row, raw_host_->data() + at + i * row});
    }
    conversions.push_back({.from = raw_->data() + at,
                           .from_type = type,
                           .to = packed_->data() + run.first * weight.row_bytes(),
                           .to_type = weight.dtype(),
                           .rows = run.rows,
                           .cols = weight.cols(),
                           .step = run.step,
                           .overflow = reinterpret_cast<uint32_t*>(overflow_->data())});
    at = align_run(at + run.rows * row);
  }
  check(at <= raw_->size() && out.size() <= packed_->size() && out.size() == n * weight.row_bytes(),
        "a piece is larger than its staging");
  pool.run(std::ssize(tasks), [&](int64_t t) {
    const Task& task = tasks[t];
    for (int64_t i = 0; i < task.rows; ++i) {
      std::memcpy(task.to + i * task.bytes, task.source->row_bytes(task.row + i), task.bytes);
    }
  });
  stream_->copy_to_device(raw_->data(), raw_host_->data(), at);
  stream_->fill(overflow_->data(), 0, sizeof(uint32_t));
  for (const RowConversion& c : conversions) packing_.convert_rows(c, *stream_);
  stream_->copy_to_host(out.data(), packed_->data(), out.size());
  stream_->copy_to_host(overflow_host_->data(), overflow_->data(), sizeof(uint32_t));
}

bool DeviceRows::wait() {
  stream_->synchronize();
  uint32_t overflow = 0;
  std::memcpy(&overflow, overflow_host_->data(), sizeof(overflow));
  return overflow == 0;
}

}  // namespace pinion
