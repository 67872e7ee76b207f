#include "server/embeddings.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>

namespace pinion {
namespace {

// More would not fit a queue of the default length.
constexpr size_t kMostInputs = 256;

static_assert(std::endian::native == std::endian::little, "base64 carries the floats as they lie in memory");

std::string base64(std::string_view bytes) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (i + k < bytes.size() ? static_cast<uint8_t>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) {
      out += k <= bytes.size() - i ? digits[group >> (18 - 6 * k) & 63] : '=';
    }
  }
  return out;
}

void read_inputs(RequestFields& fields, const ModelService& model, EmbeddingCall& call) {
  const OrderedJson* input = fields.find("input");
  if (input == nullptr) return fields.fail(bad_field("input", "missing"));
  const auto encode = [&](const OrderedJson& text) {
    call.inputs.push_back(model.text->encode(text.get_ref<const std::string&>(), true));
  };
  if (input->is_string()) return encode(*input);
  if (!input->is_array() || input->empty()) {
    return fields.fail(bad_field("input", "expected a string, strings, token ids or lists of token ids"));
  }
  if ((*input)[0].is_number()) {
    call.inputs.push_back(read_token_ids(fields, *input, "input", model.vocab_size));
    return;
  }
  if (input->size() > kMostInputs) {
    return fields.fail(bad_field(
        "input", fmt::format("{} inputs in one request, at most {} are allowed", input->size(), kMostInputs)));
  }
  for (const OrderedJson& one : *input) {
    if (one.is_string()) {
      encode(one);
    } else if (one.is_array()) {
      call.inputs.push_back(read_token_ids(fields, one, "input", model.vocab_size));
    } else {
      return fields.fail(bad_field("input", "expected strings, or lists of token ids"));
    }
  }
}

// Of two words the second: whether.
void read_choice(RequestFields& fields, std::string_view name, std::string_view first, std::string_view second,
                 bool& out) {
  std::string text(out ? second : first);
  fields.string(name, text, 16);
  if (text != first && text != second) {
    fields.fail(bad_field(name, fmt::format("expected \"{}\" or \"{}\"", first, second)));
  }
  out = text == second;
}

}  // namespace

std::vector<Request> EmbeddingCall::requests(const std::string& id) const {
  std::vector<Request> out;
  for (const auto& input : inputs) {
    Request request{.id = fmt::format("{}-{}", id, out.size()),
                    .prompt = input,
                    .sampling = {},
                    .priority = priority,
                    .cache_salt = {},
                    .pooling = pooling};
    request.sampling.max_tokens = 1;
    out.push_back(std::move(request));
  }
  return out;
}

std::variant<EmbeddingCall, ApiError> parse_embedding_call(const OrderedJson& body, const ModelService& model,
                                                           const RequestLimits& limits) {
  RequestFields fields(body);
  EmbeddingCall call;
  read_model(fields, model);
  read_inputs(fields, model, call);
  bool mean = false;
  read_choice(fields, "encoding_format", "float", "base64", call.base64);
  read_choice(fields, "pooling", "last", "mean", mean);
  if (mean) call.pooling = Pooling::mean;
  fields.boolean("normalize", call.normalize);
  fields.integer("priority", -1'000'000, 1'000'000, call.priority);
  call.priority = -call.priority;  // vLLM's field: lower runs first
  int32_t keep = 0;
  fields.integer("truncate_prompt_tokens", 1, model.max_seq_len, keep);
  fields.refuse("dimensions");
  fields.ignore("user");
  for (auto& input : call.inputs) {
    if (keep > 0 && input.size() > static_cast<size_t>(keep)) input.erase(input.begin(), input.end() - keep);
    if (input.empty()) fields.fail(bad_field("input", "an input is empty"));
    if (input.size() < static_cast<size_t>(model.max_seq_len)) continue;
    ApiError error = bad_field(
        "input", fmt::format("an input has {} tokens, the model's limit is {}", input.size(), model.max_seq_len - 1));
    error.code = "context_length_exceeded";
    fields.fail(error);
  }
  if (auto unknown = check_unknown(fields, limits)) fields.fail(*unknown);
  if (!fields.ok()) return *fields.error();
  return call;
}

EmbeddingWriter::EmbeddingWriter(EmbeddingCall call, std::string model)
    : call_(std::move(call)),
      model_(std::move(model)),
      vectors_(call_.inputs.size()),
      cached_(call_.inputs.size()),
      open_(call_.inputs.size()) {}

void EmbeddingWriter::add(size_t input, OutputPiece piece, std::string&) {
  cached_[input] = std::max(cached_[input], piece.cached_tokens);
  if (piece.finish == FinishReason::none) return;
  --open_;
  if (piece.finish == FinishReason::error || piece.finish == FinishReason::cancelled) {
    if (!error_) {
      error_ = piece.error ? api_error(*piece.error)
                           : ApiError{.status = 503, .message = "the request was cancelled by the server"};
    }
    return;
  }
  double squares = 0;
  for (const float v : piece.embedding) squares += double{v} * v;
  if (call_.normalize && squares > 0) {
    for (float& v : piece.embedding) v = static_cast<float>(v / std::sqrt(squares));
  }
  vectors_[input] = std::move(piece.embedding);
}

HttpResponse EmbeddingWriter::response() {
  OrderedJson body;
  body["object"] = "list";
  body["data"] = OrderedJson::array();
  for (size_t i = 0; i < vectors_.size(); ++i) {
    OrderedJson row;
    row["object"] = "embedding";
    row["index"] = i;
    const auto& v = vectors_[i];
    if (call_.base64) {
      row["embedding"] = base64({reinterpret_cast<const char*>(v.data()), v.size() * sizeof(float)});
    } else {
      row["embedding"] = v;
    }
    body["data"].push_back(std::move(row));
  }
  body["model"] = model_;
  body["usage"]["prompt_tokens"] = totals().prompt_tokens;
  body["usage"]["total_tokens"] = totals().prompt_tokens;
  return {.body = dump(body)};
}

ResponseWriter::Totals EmbeddingWriter::totals() const {
  Totals out;
  for (size_t i = 0; i < call_.inputs.size(); ++i) {
    out.prompt_tokens += static_cast<int64_t>(call_.inputs[i].size());
    out.cached_tokens += cached_[i];
  }
  return out;
}

}  // namespace pinion
