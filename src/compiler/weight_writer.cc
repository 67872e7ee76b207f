#include "compiler/weight_writer.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

namespace pinion {
WeightWriter::WeightWriter(EngineWriter& file, Device& device, ThreadPool& pool, size_t piece_bytes)
    : file_(file), device_(device), pool_(pool), piece_bytes_(piece_bytes) {
  for (const Stage stage : {hashing, writing}) threads_[stage] = std::thread([this, stage] { run(stage); });
}

WeightWriter::~WeightWriter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& t : threads_) t.join();
}

Status WeightWriter::wait_until(uint64_t pieces) {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return std::ranges::min(done_) >= pieces; });
  waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return status_;
}

Result<WeightWriter::Slot*> WeightWriter::slot_of(uint64_t piece, size_t bytes) {
  PINION_OK(wait_until(piece < kSlots ? 0 : piece - kSlots + 1));
  Slot& slot = slots_[piece % kSlots];
  if (!slot.buffer || slot.buffer->size() < bytes) {
    PINION_TRY(slot.buffer, device_.allocate_pinned(std::max(bytes, piece_bytes_)));
  }
  return &slot;
}

Status WeightWriter::add(PackedWeight& weight, const DenseWeight& dense) {
  const int64_t device_rows = DeviceRows::most_rows(dense, piece_bytes_);
  const int64_t host_rows = std::max<int64_t>(1, static_cast<int64_t>(piece_bytes_ / dense.row_bytes()));
  std::optional<Conversion> converting;  // one at a time: it runs while the next piece is gathered
  uint64_t next = made_;                 // only this thread adds to it
  bool on_device = device_rows > 0;
  for (int64_t first = 0, n = 0; first < dense.rows(); first += n, ++next) {
    n = std::min(on_device ? device_rows : host_rows, dense.rows() - first);
    PINION_TRY(Slot* const slot, slot_of(next, n * dense.row_bytes()));
    if (on_device && !slot->rows) {
      PINION_TRY(slot->rows, DeviceRows::create(device_, piece_bytes_));
      on_device = slot->rows != nullptr;
    }
    const std::span<std::byte> bytes(slot->buffer->data(), n * dense.row_bytes());
    Piece piece{.weight = &weight, .bytes = bytes, .first = first == 0, .last = first + n == dense.rows(), .own = {}};
    if (!on_device) {
      PINION_OK(dense.pack(first, n, bytes, pool_));
      hand_over(std::move(piece));
      continue;
    }
    slot->rows->start(dense, first, n, bytes, pool_);
    if (converting) PINION_OK(finish_conversion(dense, *converting));
    converting = Conversion{first, n, slot, std::move(piece)};
  }
  if (converting) PINION_OK(finish_conversion(dense, *converting));
  return {};
}

Status WeightWriter::finish_conversion(const DenseWeight& dense, Conversion& conversion) {
  if (!conversion.slot->rows->wait()) {  // packed again on the host, which finds the tensor and says its name
    std::vector<std::byte> again(conversion.piece.bytes.size());
    PINION_OK(dense.pack(conversion.first, conversion.rows, again, pool_));
    check(false, "the device found a value beyond float16 where the host finds none");
  }
  hand_over(std::move(conversion.piece));
  return {};
}

Status WeightWriter::add(PackedWeight& weight, std::vector<std::byte> packed) {
  PINION_OK(wait_until(made_));  // two whole weights are in memory at most: this one and the one being packed
  const std::span<const std::byte> bytes = packed;
  hand_over({.weight = &weight, .bytes = bytes, .first = true, .last = true, .own = std::move(packed)});
  return {};
}

Status WeightWriter::finish() {
  return wait_until(made_);
}

void WeightWriter::hand_over(Piece piece) {
  {
    const std::lock_guard lock(mutex_);
    ring_[made_++ % kSlots] = std::move(piece);
  }
  changed_.notify_all();
}

// Each stage takes the pieces in order. After an error of writing the rest only passes through.
void WeightWriter::run(Stage stage) {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || done_[stage] < made_; });
    if (stop_) return;
    const Piece& piece = ring_[done_[stage] % kSlots];  // nobody changes it before both are done
    const bool failed = !status_.ok();
    lock.unlock();
    Status status;
    if (stage == hashing) {
      hash(piece);
    } else if (!failed) {
      status = write(piece);
    }
    lock.lock();
    if (!status.ok()) status_ = std::move(status);
    ++done_[stage];
    changed_.notify_all();
  }
}

void WeightWriter::hash(const Piece& piece) {
  if (piece.first) hasher_.reset();
  hasher_.update(piece.bytes);
  if (piece.last) piece.weight->hash = hasher_.digest();
}

Status WeightWriter::write(const Piece& piece) {
  if (piece.first) PINION_OK(file_.begin_weight(*piece.weight));
  return file_.append(piece.bytes);
}

}  // namespace pinion
