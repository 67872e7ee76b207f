#include "server/kserve_writer.h"

#include <algorithm>

namespace pinion {
namespace {

HttpResponse error_body(int status, std::string_view message) {
  OrderedJson body;
  body["error"] = message;
  return {.status = status, .body = dump(body)};
}

}  // namespace

ApiError kserve_api_error(const Error& error) {
  ApiError out = api_error(error);
  if (error.code == Errc::unsupported) out.status = 501;
  return out;
}

HttpResponse kserve_error(const Error& error) {
  return kserve_error(kserve_api_error(error));
}

HttpResponse kserve_error(const ApiError& error) {
  HttpResponse out = error_body(error.status, error.message);
  if (error.retry_after > 0) out.headers.emplace_back("Retry-After", std::to_string(error.retry_after));
  return out;
}

KserveWriter::KserveWriter(KserveCall call, std::string model, std::string version, Form form,
                           std::shared_ptr<KserveStats> stats)
    : call_(std::move(call)),
      model_(std::move(model)),
      version_(std::move(version)),
      form_(form),
      stats_(std::move(stats)),
      sequences_(call_.requests.size()),
      open_(sequences_.size()) {}

void KserveWriter::add(size_t index, OutputPiece piece, std::string& out) {
  if (take(index, std::move(piece))) out += "data: " + dump(flat(tensors(index))) + "\n\n";
}

bool KserveWriter::take(size_t index, OutputPiece piece) {
  Sequence& s = sequences_[index];
  if (s.finish != FinishReason::none) return false;
  if (piece.prompt_tokens > 0) s.prompt_tokens = piece.prompt_tokens;
  s.cached_tokens = std::max(s.cached_tokens, piece.cached_tokens);
  s.output_tokens = std::max(s.output_tokens, piece.output_tokens);
  s.finish = piece.finish;
  if (call_.stream) s.text.clear(), s.tokens.clear(), s.logprobs.clear();  // an event holds the newest piece
  s.text += piece.text;
  s.tokens.insert(s.tokens.end(), piece.tokens.begin(), piece.tokens.end());
  for (const TokenLogprob& entry : piece.logprobs) {
    s.logprobs.push_back(std::max(entry.logprob, -9999.0F));  // JSON has no -inf
    s.logprob_sum += s.logprobs.back();
  }
  if (piece.finish != FinishReason::none) {
    --open_;
    s.queue_seconds = piece.queue_seconds;
    s.prefill_seconds = piece.prefill_seconds;
    s.decode_seconds = piece.decode_seconds;
  }
  if (piece.finish == FinishReason::error || piece.finish == FinishReason::cancelled) {
    if (!error_) {
      error_ = piece.error ? api_error(*piece.error)
                           : ApiError{.status = piece.finish == FinishReason::cancelled ? 503 : 500,
                                      .message = piece.finish == FinishReason::cancelled
                                                     ? "the request was cancelled by the server"
                                                     : "generation failed"};
    }
  }
  if (open_ == 0) count();
  return call_.stream && !error_ && (!s.text.empty() || !s.tokens.empty());
}

void KserveWriter::count() {
  constexpr double kNano = 1e9;
  const auto ns = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_).count());
  KserveStats& stats = *stats_;
  (error_ ? stats.failed : stats.success) += 1;
  (error_ ? stats.failed_ns : stats.success_ns) += ns;
  stats.sequences += sequences_.size();
  for (const Sequence& s : sequences_) {
    if (error_) break;
    stats.queue_ns += static_cast<uint64_t>(s.queue_seconds * kNano);
    stats.prefill_ns += static_cast<uint64_t>(s.prefill_seconds * kNano);
    stats.decode_ns += static_cast<uint64_t>(s.decode_seconds * kNano);
  }
  stats.last_ms = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
}

std::vector<KserveTensor> KserveWriter::outputs(size_t first, size_t last, int64_t rows) const {
  const auto each = static_cast<int64_t>(last - first) / rows;
  const auto of_row = [&](size_t i) { return i / static_cast<size_t>(call_.choices); };
  size_t longest = 0, most_scores = 0;
  for (size_t i = first; i < last; ++i) {
    longest = std::max(longest, call_.echo_ids[of_row(i)].size() + sequences_[i].tokens.size());
    most_scores = std::max(most_scores, sequences_[i].logprobs.size());
  }
  std::vector<KserveTensor> out;
  for (const KserveOutput& wanted : call_.outputs) {
    const auto known = kserve_outputs(call_.ids);
    const KserveType type = std::ranges::find(known, wanted.name, &KserveSignature::name)->type;
    KserveTensor t{.name = wanted.name, .type = type, .shape = {rows, each}, .values = {}};
    std::vector<std::string> strings;
    std::vector<double> reals;
    std::vector<int64_t> numbers;
    for (size_t i = first; i < last; ++i) {
      const Sequence& s = sequences_[i];
      const auto& echo = call_.echo_ids[of_row(i)];
      if (t.name == "text_output") strings.push_back(call_.echo_text[of_row(i)] + s.text);
      if (t.name == "batch_index") numbers.push_back(static_cast<int64_t>(of_row(i)));
      if (t.name == "sequence_index") numbers.push_back(static_cast<int64_t>(i) % call_.choices);
      if (t.name == "num_input_tokens") numbers.push_back(s.prompt_tokens);
      if (t.name == "num_output_tokens") numbers.push_back(s.output_tokens);
      if (t.name == "sequence_length") numbers.push_back(static_cast<int64_t>(echo.size() + s.tokens.size()));
      if (t.name == "cum_log_probs") reals.push_back(s.logprob_sum);
      if (t.name == "output_ids") {  // padded with zeros to the longest: sequence_length says what counts
        numbers.insert(numbers.end(), echo.begin(), echo.end());
        numbers.insert(numbers.end(), s.tokens.begin(), s.tokens.end());
        numbers.resize((i - first + 1) * longest);
      }
      if (t.name == "output_log_probs") {
        reals.insert(reals.end(), s.logprobs.begin(), s.logprobs.end());
        reals.resize((i - first + 1) * most_scores);
      }
    }
    if (t.name == "output_ids") t.shape.push_back(static_cast<int64_t>(longest));
    if (t.name == "output_log_probs") t.shape.push_back(static_cast<int64_t>(most_scores));
    if (type == KserveType::bytes) {
      t.values = std::move(strings);
    } else if (type == KserveType::fp32) {
      t.values = std::move(reals);
    } else {
      t.values = std::move(numbers);
    }
    out.push_back(std::move(t));
  }
  return out;
}

// The generate extension: a tensor of one element is a scalar, of more a flat list.
OrderedJson KserveWriter::flat(const std::vector<KserveTensor>& tensors) const {
  OrderedJson body;
  body["model_name"] = model_;
  body["model_version"] = version_;
  if (!call_.id.empty()) body["id"] = call_.id;
  if (!call_.ids) {  // parameters that the ensemble's answers carry
    body["sequence_id"] = 0;
    body["sequence_start"] = false;
    body["sequence_end"] = false;
  }
  for (const KserveTensor& t : tensors) {
    const OrderedJson values = json_values(t);
    body[t.name] = values.size() == 1 ? values[0] : values;
  }
  return body;
}

HttpResponse KserveWriter::tensors_response(const std::vector<KserveTensor>& tensors) const {
  OrderedJson body;
  std::string binary;
  body["model_name"] = model_;
  body["model_version"] = version_;
  if (!call_.id.empty()) body["id"] = call_.id;
  body["outputs"] = OrderedJson::array();
  for (size_t i = 0; i < tensors.size(); ++i) {
    OrderedJson t;
    t["name"] = tensors[i].name;
    t["datatype"] = name(tensors[i].type);
    t["shape"] = tensors[i].shape;
    if (call_.outputs[i].binary) {
      const std::string bytes = binary_values(tensors[i]);
      t["parameters"]["binary_data_size"] = bytes.size();
      binary += bytes;
    } else {
      t["data"] = json_values(tensors[i]);
    }
    body["outputs"].push_back(std::move(t));
  }
  HttpResponse out{.body = dump(body)};
  if (std::ranges::any_of(call_.outputs, &KserveOutput::binary)) {
    out.headers.emplace_back("Inference-Header-Content-Length", std::to_string(out.body.size()));
    out.content_type = "application/octet-stream";
    out.body += binary;
  }
  return out;
}

HttpResponse KserveWriter::response() {
  return form_ == Form::infer ? tensors_response(tensors()) : HttpResponse{.body = dump(flat(tensors()))};
}

std::string KserveWriter::error_event(const ApiError& error) const {
  return "data: " + kserve_error(error).body + "\n\n";
}

ResponseWriter::Totals KserveWriter::totals() const {
  Totals out;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    out.output_tokens += sequences_[i].output_tokens;
    if (i % static_cast<size_t>(call_.choices) != 0) continue;  // a prompt counts once, however many choices it has
    out.prompt_tokens += sequences_[i].prompt_tokens;
    out.cached_tokens += sequences_[i].cached_tokens;
  }
  return out;
}

std::string_view KserveWriter::finish(size_t sequence) const {
  return finish_name(sequences_[sequence].finish);
}

}  // namespace pinion
