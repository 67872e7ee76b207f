// The sequences of one HTTP request on their way through the generator. Pieces cross from the engine thread to the
// connection through one bounded queue: the sink never blocks, and a reader that is too slow is cut off, not buffered.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "server/service.h"

namespace pinion {

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  struct Event {
    size_t sequence = 0;
    OutputPiece piece;
  };

  // `notify` is called on the engine thread when the queue becomes non-empty or overflows; it must not block.
  Generation(Generator& generator, size_t max_queued_bytes, std::function<void()> notify);

  // Submits all or, on an error, none: what was accepted is cancelled.
  Status start(std::vector<Request> requests);
  std::vector<Event> take();  // what has come since the last call
  bool overflowed() const;    // more than max_queued_bytes waited: pieces were lost
  // Cancels what still runs and lets nothing more through. Called by the connection when it is done, in any case.
  void stop();

 private:
  void push(size_t sequence, OutputPiece piece);

  Generator& generator_;
  const size_t max_queued_bytes_;
  std::vector<uint64_t> tickets_;
  mutable std::mutex mutex_;
  std::function<void()> notify_;  // empty: stopped
  std::vector<Event> queue_;
  std::vector<bool> finished_;
  size_t queued_bytes_ = 0;
  bool overflowed_ = false;
};

}  // namespace pinion
