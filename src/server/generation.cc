#include "server/generation.h"

#include "server/response_writer.h"

namespace pinion {
namespace {

size_t bytes_of(const OutputPiece& piece) {
  size_t bytes = sizeof piece + piece.text.size() + piece.tokens.size() * sizeof(int32_t);
  for (const auto& entry : piece.logprobs) bytes += sizeof entry + entry.top.size() * sizeof entry.top[0];
  return bytes;  // prompt_logprobs come once and are bounded by the context
}

}  // namespace

std::string_view finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::error:
      return "error";
    case FinishReason::none:
    case FinishReason::cancelled:
      break;
  }
  return "cancelled";
}

Generation::Generation(Generator& generator, size_t max_queued_bytes, std::function<void()> notify)
    : generator_(generator), max_queued_bytes_(max_queued_bytes), notify_(std::move(notify)) {}

Status Generation::start(std::vector<Request> requests) {
  finished_.resize(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    auto ticket = generator_.submit(
        std::move(requests[i]), [self = shared_from_this(), i](OutputPiece piece) { self->push(i, std::move(piece)); });
    if (!ticket) {
      stop();
      return std::move(ticket).error();
    }
    tickets_.push_back(*ticket);
  }
  return {};
}

void Generation::push(size_t sequence, OutputPiece piece) {
  const std::lock_guard lock(mutex_);
  if (piece.finish != FinishReason::none) finished_[sequence] = true;
  if (!notify_ || overflowed_) return;
  queued_bytes_ += bytes_of(piece);
  const bool was_empty = queue_.empty();
  if (queued_bytes_ > max_queued_bytes_) {
    overflowed_ = true;
    queue_.clear();
  } else {
    queue_.push_back({sequence, std::move(piece)});
  }
  if (was_empty || overflowed_) notify_();
}

std::vector<Generation::Event> Generation::take() {
  const std::lock_guard lock(mutex_);
  queued_bytes_ = 0;
  return std::exchange(queue_, {});
}

bool Generation::overflowed() const {
  const std::lock_guard lock(mutex_);
  return overflowed_;
}

void Generation::stop() {
  std::vector<uint64_t> running;
  {
    const std::lock_guard lock(mutex_);
    if (!notify_) return;
    notify_ = nullptr;
    queue_.clear();
    for (size_t i = 0; i < tickets_.size(); ++i) {
      if (!finished_[i]) running.push_back(tickets_[i]);
    }
  }
  for (const uint64_t ticket : running) generator_.cancel(ticket);  // unlocked: the sink may run inside cancel()
}

}  // namespace pinion
