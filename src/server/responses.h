// POST /v1/responses, OpenAI's newer form of a chat: items in, items out, and a stream of named events. The request is
// rewritten into the form of /v1/chat/completions, so that every field means the same in both; nothing is stored, so a
// response cannot be continued or fetched by its id.
#pragma once

#include <optional>
#include <variant>

#include "server/openai_request.h"
#include "server/reasoning.h"
#include "server/response_writer.h"
#include "server/tool_calls.h"

namespace pinion {

// A chat body for parse_chat_call, or what is wrong, by the name of the field in the request. `body` is an object.
std::variant<OrderedJson, ApiError> chat_body_of_response_request(const OrderedJson& body);

class ResponsesWriter final : public ResponseWriter {
 public:
  // `request`: the body that was sent; the answer repeats its settings.
  ResponsesWriter(CompletionCall call, const OrderedJson& request, const ModelService& model, std::string id,
                  int64_t created);

  bool streams() const override { return call_.stream; }
  void add(size_t sequence, OutputPiece piece, std::string& out) override;
  bool done() const override { return finish_ != FinishReason::none; }
  const ApiError* failed() const override { return error_ ? &*error_ : nullptr; }
  void end(std::string& out) override;
  std::string error_event(const ApiError& error) const override;
  HttpResponse error(const ApiError& error) const override { return error_response(error); }
  HttpResponse response() override;
  Totals totals() const override;
  std::string_view finish(size_t sequence) const override;
  size_t sequences() const override { return 1; }

 private:
  struct Item {
    enum class Kind : uint8_t { reasoning, message, call } kind = Kind::message;
    std::string id, text;  // text: a call's arguments
    std::string call_id, name;
  };

  void append(Item::Kind kind, const std::string& text, std::string& out);
  void add_call(const ToolCall& call, std::string& out);
  Item& open(Item::Kind kind, std::string& out, const std::string& name = {});
  void close(std::string& out);
  void event(std::string_view type, OrderedJson fields, std::string& out);
  OrderedJson item_json(const Item& item, bool complete) const;
  OrderedJson body(std::string_view status) const;

  const CompletionCall call_;
  const ModelService& model_;
  const std::string id_;
  const int64_t created_;
  OrderedJson settings_;  // of the request, as the answer repeats them
  ReasoningParser reasoning_parser_;
  ToolCallParser tool_parser_;
  std::vector<Item> items_;
  bool begun_ = false, open_ = false;  // open_: the last item still grows
  int64_t sequence_number_ = 0;
  FinishReason finish_ = FinishReason::none;
  int32_t prompt_tokens_ = 0, cached_tokens_ = 0, output_tokens_ = 0, reasoning_tokens_ = 0;
  std::optional<ApiError> error_;
};

}  // namespace pinion
