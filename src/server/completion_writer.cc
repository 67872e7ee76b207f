#include "server/completion_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace pinion {
namespace {

size_t characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

float finite(float logprob) {
  return std::max(logprob, -9999.0F);
}  // JSON has no -inf

OrderedJson bytes_json(std::string_view bytes) {
  OrderedJson out = OrderedJson::array();
  for (const char c : bytes) out.push_back(static_cast<unsigned char>(c));
  return out;
}

OrderedJson calls_json(const std::vector<ToolCall>& calls, std::string_view id, size_t first, bool with_index) {
  OrderedJson out = OrderedJson::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    OrderedJson call;
    if (with_index) call["index"] = first + i;
    call["id"] = fmt::format("call_{}_{}", id, first + i);
    call["type"] = "function";
    call["function"]["name"] = calls[i].name;
    call["function"]["arguments"] = calls[i].arguments;
    out.push_back(std::move(call));
  }
  return out;
}

}  // namespace

CompletionWriter::CompletionWriter(CompletionCall call, const ModelService& model, std::string id, int64_t created)
    : call_(std::move(call)),
      model_(model),
      id_(std::move(id)),
      created_(created),
      sequences_(call_.prompts.size() * static_cast<size_t>(call_.best_of)),
      open_(sequences_.size()) {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    sequences_[i].prompt = i / static_cast<size_t>(call_.best_of);
    sequences_[i].reasoning_parser = ReasoningParser(call_.reasoning_open);
    sequences_[i].tool_parser = ToolCallParser(call_.tool_format);
  }
}

// max_tokens 0: the one token that the engine had to make is not part of the answer.
void CompletionWriter::drop_score_token(OutputPiece& piece) const {
  if (call_.max_tokens != 0) return;
  piece.text.clear();
  piece.tokens.clear();
  piece.logprobs.clear();
  piece.output_tokens = 0;
  piece.stop_reason.clear();
  if (piece.finish == FinishReason::stop) piece.finish = FinishReason::length;
}

void CompletionWriter::add(size_t index, OutputPiece piece, std::string& out) {
  Sequence& sequence = sequences_[index];
  if (sequence.finish != FinishReason::none) return;
  drop_score_token(piece);
  if (piece.prompt_tokens > 0) sequence.prompt_tokens = piece.prompt_tokens;
  sequence.cached_tokens = std::max(sequence.cached_tokens, piece.cached_tokens);
  sequence.output_tokens = std::max(sequence.output_tokens, piece.output_tokens);
  sequence.finish = piece.finish;
  sequence.stop_reason = piece.stop_reason;
  for (const auto& entry : piece.logprobs) sequence.logprob_sum += entry.logprob;
  if (piece.finish != FinishReason::none) --open_;
  if (piece.finish == FinishReason::error || piece.finish == FinishReason::cancelled) {
    if (!error_) {
      error_ = piece.error ? api_error(*piece.error)
               : piece.finish == FinishReason::cancelled
                   ? ApiError{.status = 503, .message = "the request was cancelled by the server", .code = "cancelled"}
                   : ApiError{.status = 500, .message = "generation failed"};
    }
    return;
  }

  if (call_.token_ids) sequence.tokens.insert(sequence.tokens.end(), piece.tokens.begin(), piece.tokens.end());
  const bool ended = piece.finish != FinishReason::none;
  std::vector<ToolCall> calls;
  std::string reasoning;
  if (call_.reasoning) {
    std::string content;
    sequence.reasoning_parser.add(piece.text, ended, reasoning, content);
    piece.text = std::move(content);
    if (!call_.show_reasoning) reasoning.clear();
  }
  if (call_.tool_format != ToolFormat::none) {
    std::string content;
    sequence.tool_parser.add(piece.text, ended, content, calls);
    piece.text = std::move(content);
    if (call_.one_tool_call && !calls.empty()) calls.resize(sequence.calls.empty() ? 1 : 0);
  }
  if (call_.stream) {
    if (!piece.prompt_logprobs.empty()) sequence.prompt_logprobs = std::move(piece.prompt_logprobs);
    begin(index, sequence, out);
    emit(index, sequence, piece, reasoning, out);
    if (!calls.empty()) {
      OrderedJson delta;
      delta["delta"]["tool_calls"] = calls_json(calls, fmt::format("{}_{}", id_, index), sequence.calls.size(), true);
      delta["logprobs"] = nullptr;
      delta["finish_reason"] = nullptr;
      event(index, std::move(delta), out);
    }
    sequence.calls.insert(sequence.calls.end(), calls.begin(), calls.end());
    if (ended) {
      OrderedJson last;
      if (call_.chat) last["delta"] = OrderedJson::object();
      if (!call_.chat) last["text"] = "";
      last["logprobs"] = nullptr;
      last["finish_reason"] = finish_json(sequence);
      last["stop_reason"] = stop_json(sequence);
      event(index, std::move(last), out);
    }
    return;
  }
  sequence.text += piece.text;
  sequence.reasoning += reasoning;
  std::move(calls.begin(), calls.end(), std::back_inserter(sequence.calls));
  std::move(piece.logprobs.begin(), piece.logprobs.end(), std::back_inserter(sequence.logprobs));
  if (!piece.prompt_logprobs.empty()) sequence.prompt_logprobs = std::move(piece.prompt_logprobs);
}

// The first event of a choice: a chat's role, a completion's echoed prompt.
void CompletionWriter::begin(size_t index, Sequence& sequence, std::string& out) {
  if (sequence.begun) return;
  sequence.begun = true;
  OrderedJson choice;
  if (call_.chat) {
    choice["delta"]["role"] = "assistant";
    choice["delta"]["content"] = "";
    choice["logprobs"] = nullptr;
  } else if (call_.echo) {
    choice["text"] = model_.text->decode(call_.prompts[sequence.prompt], true);
    choice["logprobs"] = call_.logprobs ? text_logprobs(sequence, sequence.prompt_logprobs, {}) : OrderedJson(nullptr);
    sequence.prompt_logprobs.clear();
  } else {
    return;
  }
  choice["finish_reason"] = nullptr;
  event(index, std::move(choice), out);
}

void CompletionWriter::emit(size_t index, Sequence& sequence, const OutputPiece& piece, const std::string& reasoning,
                            std::string& out) {
  const bool logprobs = call_.logprobs && !piece.logprobs.empty();
  if (!reasoning.empty()) {  // under the names that DeepSeek's and vLLM's clients read
    OrderedJson thought;
    thought["delta"]["reasoning_content"] = reasoning;
    thought["delta"]["reasoning"] = reasoning;
    thought["logprobs"] = nullptr;
    thought["finish_reason"] = nullptr;
    event(index, std::move(thought), out);
  }
  if (piece.text.empty() && !logprobs && sequence.tokens.empty()) return;
  if (!logprobs && !call_.token_ids) {  // a token of text alone, as most are: written without a tree in between
    const std::string text = dump(OrderedJson(piece.text));
    return write_event(index,
                       call_.chat
                           ? fmt::format(R"("delta":{{"content":{}}},"logprobs":null,"finish_reason":null)", text)
                           : fmt::format(R"("text":{},"logprobs":null,"finish_reason":null)", text),
                       out);
  }
  OrderedJson choice;
  if (call_.chat) {
    choice["delta"]["content"] = piece.text;
  } else {
    choice["text"] = piece.text;
  }
  choice["logprobs"] = !logprobs    ? OrderedJson(nullptr)
                       : call_.chat ? chat_logprobs(piece.logprobs)
                                    : text_logprobs(sequence, {}, piece.logprobs);
  add_token_ids(sequence, choice);
  choice["finish_reason"] = nullptr;
  event(index, std::move(choice), out);
}

// vLLM's form: an answer's tokens, or those since the last event; the prompt's once.
void CompletionWriter::add_token_ids(Sequence& sequence, OrderedJson& choice) const {
  if (!call_.token_ids) return;
  choice["token_ids"] = std::exchange(sequence.tokens, {});
  if (!std::exchange(sequence.prompt_sent, true)) choice["prompt_token_ids"] = call_.prompts[sequence.prompt];
}

void CompletionWriter::event(size_t index, const OrderedJson& choice, std::string& out) {
  const std::string text = dump(choice);
  write_event(index, std::string_view(text).substr(1, text.size() - 2), out);
}

// `choice`: what stands between its braces, after the index.
void CompletionWriter::write_event(size_t index, std::string_view choice, std::string& out) {
  if (event_head_.empty()) {
    const std::string head_text = dump(head(call_.chat ? "chat.completion.chunk" : "text_completion"));
    event_head_ = fmt::format(R"(data: {},"choices":[{{"index":)", head_text.substr(0, head_text.size() - 1));
  }
  fmt::format_to(std::back_inserter(out), "{}{},{}}}]", event_head_, index, choice);
  if (call_.include_usage) {
    out += ",\"usage\":";
    out += call_.continuous_usage ? dump(usage()) : "null";
  }
  out += "}\n\n";
}

void CompletionWriter::end(std::string& out) {
  if (call_.include_usage) {
    OrderedJson body = head(call_.chat ? "chat.completion.chunk" : "text_completion");
    body["choices"] = OrderedJson::array();
    body["usage"] = usage();
    out += "data: " + dump(body) + "\n\n";
  }
  out += "data: [DONE]\n\n";
}

std::string CompletionWriter::error_event(const ApiError& error) const {
  return "data: " + dump(error_json(error)) + "\n\n";
}

HttpResponse CompletionWriter::response() {
  OrderedJson body = head(call_.chat ? "chat.completion" : "text_completion");
  body["choices"] = OrderedJson::array();
  for (size_t p = 0; p < call_.prompts.size(); ++p) {
    for (const size_t s : best(p)) body["choices"].push_back(choice(body["choices"].size(), sequences_[s]));
  }
  body["usage"] = usage();
  return {.body = dump(body)};
}

// The n of best_of sequences with the highest mean log probability.
std::vector<size_t> CompletionWriter::best(size_t prompt) const {
  std::vector<size_t> order(static_cast<size_t>(call_.best_of));
  for (size_t j = 0; j < order.size(); ++j) order[j] = prompt * order.size() + j;
  if (call_.best_of > call_.n) {
    const auto score = [&](size_t s) { return sequences_[s].logprob_sum / std::max(1, sequences_[s].output_tokens); };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return score(a) > score(b); });
  }
  order.resize(static_cast<size_t>(call_.n));
  return order;
}

OrderedJson CompletionWriter::head(std::string_view object) const {
  OrderedJson body;
  body["id"] = id_;
  body["object"] = object;
  body["created"] = created_;
  body["model"] = model_.name;
  body["system_fingerprint"] = nullptr;
  return body;
}

OrderedJson CompletionWriter::choice(size_t index, Sequence& sequence) const {
  OrderedJson out;
  out["index"] = index;
  if (call_.chat) {
    OrderedJson& message = out["message"];
    message["role"] = "assistant";
    message["content"] =
        sequence.text.empty() && !sequence.calls.empty() ? OrderedJson(nullptr) : OrderedJson(sequence.text);
    message["refusal"] = nullptr;
    if (call_.reasoning && call_.show_reasoning) {
      message["reasoning_content"] = sequence.reasoning;
      message["reasoning"] = sequence.reasoning;
    }
    if (!sequence.calls.empty())
      message["tool_calls"] = calls_json(sequence.calls, fmt::format("{}_{}", id_, index), 0, false);
    out["logprobs"] = call_.logprobs ? chat_logprobs(sequence.logprobs) : OrderedJson(nullptr);
  } else {
    out["text"] = (call_.echo ? model_.text->decode(call_.prompts[sequence.prompt], true) : "") + sequence.text;
    out["logprobs"] =
        call_.logprobs ? text_logprobs(sequence, sequence.prompt_logprobs, sequence.logprobs) : OrderedJson(nullptr);
  }
  add_token_ids(sequence, out);
  out["finish_reason"] = finish_json(sequence);
  out["stop_reason"] = stop_json(sequence);
  return out;
}

OrderedJson CompletionWriter::chat_logprobs(const std::vector<TokenLogprob>& entries) const {
  OrderedJson content = OrderedJson::array();
  const auto one = [&](int32_t token, float logprob) {
    const std::string bytes = model_.text->token_bytes(token);
    OrderedJson out;
    out["token"] = bytes;
    out["logprob"] = finite(logprob);
    out["bytes"] = bytes_json(bytes);
    return out;
  };
  for (const TokenLogprob& entry : entries) {
    OrderedJson out = one(entry.token, entry.logprob);
    out["top_logprobs"] = OrderedJson::array();
    for (const auto& [token, logprob] : entry.top) {
      if (static_cast<int32_t>(out["top_logprobs"].size()) == call_.sampling.logprobs) break;
      out["top_logprobs"].push_back(one(token, logprob));
    }
    content.push_back(std::move(out));
  }
  OrderedJson out;
  out["content"] = std::move(content);
  out["refusal"] = nullptr;
  return out;
}

// The older form: parallel arrays; an echoed prompt's first token has no probability.
OrderedJson CompletionWriter::text_logprobs(Sequence& sequence, const std::vector<TokenLogprob>& prompt,
                                            const std::vector<TokenLogprob>& entries) const {
  OrderedJson tokens = OrderedJson::array(), logprobs = tokens, tops = tokens, offsets = tokens;
  const auto append = [&](int32_t token, const TokenLogprob* entry) {
    const std::string text = model_.text->token_bytes(token);
    tokens.push_back(text);
    logprobs.push_back(entry ? OrderedJson(finite(entry->logprob)) : OrderedJson(nullptr));
    offsets.push_back(sequence.text_offset);
    sequence.text_offset += characters(text);
    OrderedJson top = entry ? OrderedJson(OrderedJson::object()) : OrderedJson(nullptr);
    if (entry) {
      for (size_t i = 0; i < entry->top.size() && static_cast<int32_t>(i) < call_.sampling.logprobs; ++i) {
        top.emplace(model_.text->token_bytes(entry->top[i].first), finite(entry->top[i].second));
      }
      top.emplace(text, finite(entry->logprob));  // the chosen token is always in
    }
    tops.push_back(std::move(top));
  };
  const auto& ids = call_.prompts[sequence.prompt];
  if (prompt.size() == ids.size()) {
    for (size_t i = 0; i < ids.size(); ++i) append(ids[i], i == 0 ? nullptr : &prompt[i]);
  }
  for (const TokenLogprob& entry : entries) append(entry.token, &entry);
  OrderedJson out;
  out["tokens"] = std::move(tokens);
  out["token_logprobs"] = std::move(logprobs);
  out["top_logprobs"] = std::move(tops);
  out["text_offset"] = std::move(offsets);
  return out;
}

OrderedJson CompletionWriter::finish_json(const Sequence& sequence) const {
  if (sequence.finish == FinishReason::length) return "length";
  return sequence.calls.empty() ? "stop" : "tool_calls";
}

// The stop string or stop token id that matched; null for the model's own end.
OrderedJson CompletionWriter::stop_json(const Sequence& sequence) const {
  const std::string& reason = sequence.stop_reason;
  if (sequence.finish != FinishReason::stop || reason.empty()) return nullptr;
  const auto& strings = call_.sampling.stop;
  if (std::find(strings.begin(), strings.end(), reason) != strings.end()) return reason;
  int32_t token = -1;
  const auto [end, errc] = std::from_chars(reason.data(), reason.data() + reason.size(), token);
  if (errc != std::errc() || end != reason.data() + reason.size()) return reason;
  const auto& ids = call_.sampling.stop_token_ids;
  return std::find(ids.begin(), ids.end(), token) != ids.end() ? OrderedJson(token) : OrderedJson(nullptr);
}

ResponseWriter::Totals CompletionWriter::totals() const {
  Totals out;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    out.output_tokens += sequences_[i].output_tokens;
    if (i % static_cast<size_t>(call_.best_of) != 0) continue;  // a prompt counts once, however many choices it has
    out.prompt_tokens += static_cast<int64_t>(call_.prompts[sequences_[i].prompt].size());
    out.cached_tokens += sequences_[i].cached_tokens;
  }
  return out;
}

OrderedJson CompletionWriter::usage() const {
  const Totals total = totals();
  OrderedJson out;
  out["prompt_tokens"] = total.prompt_tokens;
  out["completion_tokens"] = total.output_tokens;
  out["total_tokens"] = total.prompt_tokens + total.output_tokens;
  out["prompt_tokens_details"]["cached_tokens"] = total.cached_tokens;
  return out;
}

std::string_view CompletionWriter::finish(size_t sequence) const {
  const Sequence& s = sequences_[sequence];
  return s.finish == FinishReason::stop && !s.calls.empty() ? "tool_calls" : finish_name(s.finish);
}

}  // namespace pinion
