#include "server/answer_account.h"

namespace pinion {
namespace {

double seconds_between(AnswerAccount::Clock::time_point from, AnswerAccount::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

AnswerAccount::AnswerAccount(ServerState& state, const GenerationReply& reply, size_t sequences,
                             Clock::time_point arrival)
    : state_(state), model_(reply.model), key_(reply.key), arrival_(arrival), last_(sequences) {}

void AnswerAccount::refused(const Error& error) {
  model_->metrics->failed(error.code == Errc::exhausted ? FailureReason::rejected : FailureReason::other);
}

void AnswerAccount::add(size_t sequence, const OutputPiece& piece) {
  figures_.queue_seconds += piece.queue_seconds;
  figures_.prefill_seconds += piece.prefill_seconds;
  figures_.engine_decode_seconds += piece.decode_seconds;
  if (piece.tokens.empty()) return;
  const auto now = Clock::now();
  if (!first_) {
    first_ = now;
    model_->metrics->first_token(seconds_between(arrival_, now));
  }
  auto& last = last_[sequence];
  if (last) model_->metrics->between_tokens(seconds_between(*last, now));
  last = now;
}

void AnswerAccount::end(End how, const ResponseWriter& writer, AccessRecord& record) {
  const auto totals = writer.totals();
  record.prompt_tokens = totals.prompt_tokens;
  record.output_tokens = totals.output_tokens;
  record.times = {.first_token = first_ ? seconds_between(arrival_, *first_) : 0,
                  .queue = figures_.queue_seconds,
                  .prefill = figures_.prefill_seconds,
                  .decode = figures_.engine_decode_seconds,
                  .sequences = writer.sequences()};
  state_.limiter.charge(key_, totals.prompt_tokens + totals.output_tokens);
  ModelMetrics& metrics = *model_->metrics;
  switch (how) {
    case End::late:
      metrics.failed(FailureReason::canceled);
      record.status = too_late(state_).status;
      return;
    case End::left:
      metrics.disconnected();
      record.status = 499;  // as nginx has it: the client closed the request
      return;
    case End::answered:
      break;
  }
  const auto now = Clock::now();
  figures_.seconds = seconds_between(arrival_, now);
  figures_.decode_seconds = first_ ? seconds_between(*first_, now) : 0;
  metrics.finished(writer, figures_);
  if (writer.failed()) metrics.failed(FailureReason::backend);
  record.status = writer.failed() ? writer.failed()->status : 200;
}

ApiError too_late(const ServerState& state) {
  if (state.expired) return {.status = 503, .message = "the server ends", .code = "shutting_down", .retry_after = 1};
  return {.status = 504, .message = "the request took too long", .code = "request_timeout"};
}

void log_answer(ServerState& state, AccessRecord& record, const TraceContext& trace, std::string_view route, int key,
                AnswerAccount::Clock::time_point arrival) {
  state.metrics.http_request(route, record.status);
  record.route = route;
  record.seconds = seconds_between(arrival, AnswerAccount::Clock::now());
  if (key >= 0) record.key = state.options.api_keys[static_cast<size_t>(key)].name;
  if (state.spans) state.spans->record(trace, record);
  if (state.access_log) state.access_log->write(record);
}

}  // namespace pinion
