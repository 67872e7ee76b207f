#include "runtime/weight_upload.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "base/hash.h"
#include "base/thread_pool.h"

namespace pinion {
namespace {

constexpr size_t kStaging = size_t{64} << 20;  // large enough that a copy runs at the link's rate
constexpr size_t kPiece = size_t{2} << 20;     // what one CPU copies at a time

}  // namespace

Status upload_weights(const Engine& engine, Device& device, Stream& stream, std::byte* to) {
  struct Staging {
    std::unique_ptr<Buffer> buffer;
    std::unique_ptr<Stream> stream;  // its own: waiting for one buffer's copy leaves the other's running
  };
  std::array<Staging, 2> staging;
  for (Staging& s : staging) {
    PINION_TRY(s.buffer, device.allocate_pinned(kStaging));
    s.stream = device.make_stream();
  }
  ThreadPool pool(available_cpus());
  size_t turn = 0;
  for (const PackedWeight& w : engine.weights()) {
    const std::span<const std::byte> bytes = engine.weight_bytes(w);
    for (size_t at = 0; at < bytes.size(); at += kStaging) {
      const auto part = bytes.subspan(at, std::min(kStaging, bytes.size() - at));
      const Staging& s = staging[turn++ % staging.size()];
      s.stream->synchronize();  // the copy out of it before
      pool.run(static_cast<int64_t>((part.size() + kPiece - 1) / kPiece), [&](int64_t i) {
        const auto piece = part.subspan(i * kPiece, std::min(kPiece, part.size() - i * kPiece));
        std::memcpy(s.buffer->data() + i * kPiece, piece.data(), piece.size());
      });
      s.stream->copy_to_device(to + w.offset + at, s.buffer->data(), part.size());
    }
  }
  std::atomic<int64_t> damaged{-1};
  pool.run(std::ssize(engine.weights()), [&](int64_t i) {
    const PackedWeight& w = engine.weights()[i];
    if (hash128(engine.weight_bytes(w)) != w.hash) damaged = i;
  });
  for (const Staging& s : staging) s.stream->synchronize();
  stream.synchronize();
  if (damaged >= 0) {
    return fail(Errc::corrupt, "the weight \"" + engine.weights()[damaged].name + "\" is damaged (checksum differs)",
                engine.dir().string(), "build the engine again");
  }
  return {};
}

}  // namespace pinion
