// What a generating request leaves behind, whichever protocol asked: its metrics, what its key has used, its line in
// the access log and its span.
#pragma once

#include <optional>
#include <vector>

#include "server/api.h"

namespace pinion {

class AnswerAccount {
 public:
  using Clock = ServerMetrics::Clock;
  enum class End : uint8_t { answered, late, left };  // late: cut off by the time limit; left: the client did

  AnswerAccount(ServerState& state, const GenerationReply& reply, size_t sequences, Clock::time_point arrival);

  void refused(const Error& error);                     // the engine did not take it
  void add(size_t sequence, const OutputPiece& piece);  // before the writer takes it
  void end(End how, const ResponseWriter& writer, AccessRecord& record);

 private:
  ServerState& state_;
  const ModelHandle model_;
  const int key_;
  const Clock::time_point arrival_;
  RequestFigures figures_;
  std::optional<Clock::time_point> first_;
  std::vector<std::optional<Clock::time_point>> last_;  // by sequence
};

// The answer to a request that is cut off: it took longer than the server's limit, or than what a drain leaves.
ApiError too_late(const ServerState& state);

// Counts and logs a request that ends now. `key`: of the limiter, -1: none; `record` has all but route, key and time.
void log_answer(ServerState& state, AccessRecord& record, const TraceContext& trace, std::string_view route, int key,
                AnswerAccount::Clock::time_point arrival);

}  // namespace pinion
