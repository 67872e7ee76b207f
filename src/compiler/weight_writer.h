// Packs weights into an engine's file piece by piece: while one piece is packed, those before it are hashed and
// written, each by a thread of its own. Writing is the slowest of the three: a file takes one writer at a time.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "base/hash.h"
#include "base/thread_pool.h"
#include "compiler/dense_weight.h"
#include "compiler/device_rows.h"
#include "engine/engine.h"

namespace pinion {

class WeightWriter {
 public:
  // A piece is large enough that a call or a copy over the bus costs little beside its bytes, and small enough that
  // hashing and writing find it in the processor's cache.
  static constexpr size_t kPieceBytes = size_t{16} << 20;

  // Borrows all three. A device that can converts the weights that the checkpoint has in another float type.
  WeightWriter(EngineWriter& file, Device& device, ThreadPool& pool, size_t piece_bytes = kPieceBytes);
  ~WeightWriter();  // without finish(): what is under way is given up
  WeightWriter(const WeightWriter&) = delete;
  WeightWriter& operator=(const WeightWriter&) = delete;

  // Weights in the order of the file. Until finish() they stay where they are; then offsets and hashes are known.
  // Errors: those of packing; those of writing this weight or one before. Throws DeviceError.
  Status add(PackedWeight& weight, const DenseWeight& dense);
  Status add(PackedWeight& weight, std::vector<std::byte> packed);
  Status finish();                                   // all is in the file
  double waited_seconds() const { return waited_; }  // for a place to pack to: hashing or writing was slower

 private:
  static constexpr size_t kSlots = 4;
  enum Stage : size_t { hashing, writing, kStages };
  struct Piece {
    PackedWeight* weight = nullptr;
    std::span<const std::byte> bytes;
    bool first = false, last = false;  // of its weight
    std::vector<std::byte> own;        // what `bytes` are of, where they lie in no slot
  };
  struct Slot {
    std::unique_ptr<Buffer> buffer;
    std::unique_ptr<DeviceRows> rows;
  };
  struct Conversion {  // a piece that the device packs
    int64_t first = 0, rows = 0;
    Slot* slot = nullptr;
    Piece piece;
  };

  Result<Slot*> slot_of(uint64_t piece, size_t bytes);  // once it is free
  Status finish_conversion(const DenseWeight& dense, Conversion& conversion);
  Status wait_until(uint64_t pieces);  // have gone through both stages
  void hand_over(Piece piece);
  void run(Stage stage);
  void hash(const Piece& piece);
  Status write(const Piece& piece);

  EngineWriter& file_;
  Device& device_;
  ThreadPool& pool_;
  size_t piece_bytes_;
  std::array<Slot, kSlots> slots_;  // piece i uses i % kSlots, here and in ring_
  Hasher128 hasher_;                // the hashing thread's
  double waited_ = 0;

  std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  std::array<Piece, kSlots> ring_;
  uint64_t made_ = 0;                     // pieces handed over
  std::array<uint64_t, kStages> done_{};  // of these, by stage
  bool stop_ = false;
  Status status_;                             // of writing
  std::array<std::thread, kStages> threads_;  // last: they use all the above
};

}  // namespace pinion
