// Writes the answers of /v1/chat/completions and /v1/completions, whole or as server-sent events.
#pragma once

#include <optional>
#include <vector>

#include "server/openai_request.h"
#include "server/reasoning.h"
#include "server/response_writer.h"
#include "server/tool_calls.h"

namespace pinion {

class CompletionWriter final : public ResponseWriter {
 public:
  CompletionWriter(CompletionCall call, const ModelService& model, std::string id, int64_t created);

  bool streams() const override { return call_.stream; }
  void add(size_t sequence, OutputPiece piece, std::string& out) override;
  bool done() const override { return open_ == 0; }
  const ApiError* failed() const override { return error_ ? &*error_ : nullptr; }
  void end(std::string& out) override;
  std::string error_event(const ApiError& error) const override;
  HttpResponse error(const ApiError& error) const override { return error_response(error); }
  HttpResponse response() override;
  Totals totals() const override;
  std::string_view finish(size_t sequence) const override;
  size_t sequences() const override { return sequences_.size(); }

 private:
  struct Sequence {
    size_t prompt = 0;
    std::string text, reasoning;
    std::vector<int32_t> tokens;  // return_token_ids: those not sent yet
    std::vector<TokenLogprob> logprobs, prompt_logprobs;
    std::vector<ToolCall> calls;
    ReasoningParser reasoning_parser;
    ToolCallParser tool_parser;
    FinishReason finish = FinishReason::none;
    std::string stop_reason;
    int32_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
    size_t text_offset = 0;  // characters of the tokens so far, for logprobs.text_offset
    double logprob_sum = 0;
    bool begun = false, prompt_sent = false;
  };

  void drop_score_token(OutputPiece& piece) const;
  void begin(size_t index, Sequence& sequence, std::string& out);
  void emit(size_t index, Sequence& sequence, const OutputPiece& piece, const std::string& reasoning, std::string& out);
  void add_token_ids(Sequence& sequence, OrderedJson& choice) const;
  void event(size_t index, const OrderedJson& choice, std::string& out);
  void write_event(size_t index, std::string_view choice, std::string& out);
  OrderedJson head(std::string_view object) const;
  OrderedJson usage() const;
  OrderedJson choice(size_t index, Sequence& sequence) const;
  OrderedJson chat_logprobs(const std::vector<TokenLogprob>& entries) const;
  OrderedJson text_logprobs(Sequence& sequence, const std::vector<TokenLogprob>& prompt,
                            const std::vector<TokenLogprob>& entries) const;
  OrderedJson finish_json(const Sequence& sequence) const;
  OrderedJson stop_json(const Sequence& sequence) const;
  std::vector<size_t> best(size_t prompt) const;

  const CompletionCall call_;
  const ModelService& model_;
  const std::string id_;
  const int64_t created_;
  std::string event_head_;  // of every event, up to the choice's index
  std::vector<Sequence> sequences_;
  size_t open_;
  std::optional<ApiError> error_;
};

}  // namespace pinion
