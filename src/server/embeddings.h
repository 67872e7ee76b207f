// /v1/embeddings: one vector per input, pooled from the model's final hidden states, as OpenAI's embeddings and vLLM's
// pooling of generative models.
#pragma once

#include <variant>
#include <vector>

#include "server/openai_request.h"
#include "server/response_writer.h"

namespace pinion {

struct EmbeddingCall {
  std::vector<std::vector<int32_t>> inputs;  // token ids
  Pooling pooling = Pooling::last;
  bool normalize = true;  // to length 1
  bool base64 = false;    // little-endian floats; else a list of numbers
  int32_t priority = 0;

  std::vector<Request> requests(const std::string& id) const;  // one per input
};
// `input`: a text, texts, token ids or lists of them. `pooling` ("last", "mean") and `normalize` are vLLM's settings as
// fields; `dimensions` is refused, since these vectors lose their meaning when they are cut.
std::variant<EmbeddingCall, ApiError> parse_embedding_call(const OrderedJson& body, const ModelService& model,
                                                           const RequestLimits& limits);

class EmbeddingWriter final : public ResponseWriter {
 public:
  EmbeddingWriter(EmbeddingCall call, std::string model);

  bool streams() const override { return false; }
  void add(size_t input, OutputPiece piece, std::string&) override;
  bool done() const override { return open_ == 0; }
  const ApiError* failed() const override { return error_ ? &*error_ : nullptr; }
  void end(std::string&) override {}
  std::string error_event(const ApiError& error) const override { return error_response(error).body; }
  HttpResponse error(const ApiError& error) const override { return error_response(error); }
  HttpResponse response() override;
  Totals totals() const override;
  std::string_view finish(size_t) const override { return error_ ? "error" : "stop"; }
  size_t sequences() const override { return vectors_.size(); }

 private:
  const EmbeddingCall call_;
  const std::string model_;
  std::vector<std::vector<float>> vectors_;  // by input
  std::vector<int32_t> cached_;
  size_t open_;
  std::optional<ApiError> error_;
};

}  // namespace pinion
