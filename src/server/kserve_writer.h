// Writes the answers of /infer, /generate and /generate_stream: output tensors as JSON or binary data, or flat objects.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>

#include "server/kserve_call.h"
#include "server/response_writer.h"

namespace pinion {

struct KserveStats {  // since the start, for the statistics extension
  std::atomic<uint64_t> success{0}, success_ns{0}, failed{0}, failed_ns{0}, sequences{0}, last_ms{0};
  std::atomic<uint64_t> queue_ns{0}, prefill_ns{0}, decode_ns{0};  // of requests that succeeded
};

// {"error": text}, with the protocol's statuses.
ApiError kserve_api_error(const Error& error);  // what is not supported: 501
HttpResponse kserve_error(const Error& error);
HttpResponse kserve_error(const ApiError& error);

class KserveWriter final : public ResponseWriter {
 public:
  enum class Form : uint8_t { infer, generate };
  // `model` is the name that the client used.
  KserveWriter(KserveCall call, std::string model, std::string version, Form form, std::shared_ptr<KserveStats> stats);

  bool streams() const override { return call_.stream; }
  void add(size_t sequence, OutputPiece piece, std::string& out) override;
  bool done() const override { return open_ == 0; }
  const ApiError* failed() const override { return error_ ? &*error_ : nullptr; }
  void end(std::string&) override {}  // the protocol has no closing event
  std::string error_event(const ApiError& error) const override;
  HttpResponse error(const ApiError& error) const override { return kserve_error(error); }
  HttpResponse response() override;
  Totals totals() const override;
  std::string_view finish(size_t sequence) const override;
  size_t sequences() const override { return sequences_.size(); }

  // add() without writing. True: a streamed answer has something new, which tensors(sequence) gives until the next.
  bool take(size_t sequence, OutputPiece piece);
  std::vector<KserveTensor> tensors(size_t sequence) const { return outputs(sequence, sequence + 1, 1); }
  std::vector<KserveTensor> tensors() const { return outputs(0, sequences_.size(), call_.rows); }  // the whole answer
  const std::string& id() const { return call_.id; }
  const std::string& model() const { return model_; }
  const std::string& version() const { return version_; }

 private:
  struct Sequence {
    std::string text;
    std::vector<int32_t> tokens;
    std::vector<double> logprobs;
    double logprob_sum = 0;
    FinishReason finish = FinishReason::none;
    int32_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
    double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
  };

  // The wanted outputs of sequences [first, last), as rows x (last - first) / rows.
  std::vector<KserveTensor> outputs(size_t first, size_t last, int64_t rows) const;
  OrderedJson flat(const std::vector<KserveTensor>& tensors) const;
  HttpResponse tensors_response(const std::vector<KserveTensor>& tensors) const;
  void count();

  const KserveCall call_;
  const std::string model_, version_;
  const Form form_;
  const std::shared_ptr<KserveStats> stats_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::vector<Sequence> sequences_;
  size_t open_;
  std::optional<ApiError> error_;
};

}  // namespace pinion
