#include "server/responses.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace pinion {
namespace {

constexpr size_t kMostItems = 4096;

struct Bad {
  std::optional<ApiError> error;
  void fail(ApiError e) {
    if (!error) error = std::move(e);
  }
};

std::string text_field(const OrderedJson& object, const char* name) {
  return object.contains(name) && object[name].is_string() ? object[name].get<std::string>() : std::string();
}

// Parts are named by their direction here; chat messages know "text".
OrderedJson content_of(const OrderedJson& content, const std::string& where, Bad& bad) {
  if (content.is_string()) return content;
  if (!content.is_array()) {
    bad.fail(bad_field(where, "expected a string or an array of parts"));
    return nullptr;
  }
  OrderedJson out = OrderedJson::array();
  for (size_t i = 0; i < content.size(); ++i) {
    const OrderedJson& part = content[i];
    const std::string at = fmt::format("{}[{}]", where, i);
    if (!part.is_object()) {
      bad.fail(bad_field(at, "expected an object"));
      return nullptr;
    }
    const std::string type = text_field(part, "type");
    const bool text = type == "input_text" || type == "output_text" || type == "text";
    if (!text && type != "refusal") {
      bad.fail(unsupported_field(at, "of type " + type));
      return nullptr;
    }
    const char* field = text ? "text" : "refusal";
    if (!part.contains(field) || !part[field].is_string()) {
      bad.fail(bad_field(at, fmt::format("\"{}\" is missing or not a string", field)));
      return nullptr;
    }
    out.push_back({{"type", "text"}, {"text", part[field]}});
  }
  return out;
}

void add_item(const OrderedJson& item, const std::string& where, OrderedJson& messages, Bad& bad) {
  if (!item.is_object()) return bad.fail(bad_field(where, "expected an object"));
  const std::string type = item.contains("type") ? text_field(item, "type") : "message";
  if (type == "message") {
    if (text_field(item, "role").empty()) return bad.fail(bad_field(where + ".role", "missing, or not a string"));
    OrderedJson message;
    message["role"] = item["role"];
    message["content"] =
        content_of(item.contains("content") ? item["content"] : OrderedJson(nullptr), where + ".content", bad);
    messages.push_back(std::move(message));
  } else if (type == "function_call") {
    OrderedJson call;
    call["id"] = text_field(item, "call_id");
    call["type"] = "function";
    call["function"]["name"] = text_field(item, "name");
    call["function"]["arguments"] = text_field(item, "arguments");
    // Calls that follow one another are one turn of the assistant.
    if (messages.empty() || messages.back()["role"] != "assistant") {
      messages.push_back({{"role", "assistant"}, {"content", ""}});
    }
    messages.back()["tool_calls"].push_back(std::move(call));
  } else if (type == "function_call_output") {
    OrderedJson message;
    message["role"] = "tool";
    message["tool_call_id"] = text_field(item, "call_id");
    message["content"] =
        content_of(item.contains("output") ? item["output"] : OrderedJson(nullptr), where + ".output", bad);
    messages.push_back(std::move(message));
  } else if (type != "reasoning") {  // templates cut earlier reasoning out anyway
    bad.fail(unsupported_field(where, "of type " + type));
  }
}

OrderedJson messages_of(const OrderedJson& body, Bad& bad) {
  OrderedJson messages = OrderedJson::array();
  if (body.contains("instructions") && !body["instructions"].is_null()) {
    if (!body["instructions"].is_string()) bad.fail(bad_field("instructions", "expected a string"));
    messages.push_back({{"role", "system"}, {"content", body["instructions"]}});
  }
  if (!body.contains("input")) {
    bad.fail(bad_field("input", "missing"));
  } else if (body["input"].is_string()) {
    messages.push_back({{"role", "user"}, {"content", body["input"]}});
  } else if (!body["input"].is_array() || body["input"].empty() || body["input"].size() > kMostItems) {
    bad.fail(bad_field("input", fmt::format("expected a string or an array of 1 to {} items", kMostItems)));
  } else {
    for (size_t i = 0; i < body["input"].size() && !bad.error; ++i) {
      add_item(body["input"][i], fmt::format("input[{}]", i), messages, bad);
    }
  }
  return messages;
}

// Function tools lie flat here; in chats they are nested.
OrderedJson tools_of(const OrderedJson& tools, Bad& bad) {
  OrderedJson out = OrderedJson::array();
  if (!tools.is_array()) {
    bad.fail(bad_field("tools", "expected an array"));
    return out;
  }
  for (size_t i = 0; i < tools.size() && !bad.error; ++i) {
    const std::string at = fmt::format("tools[{}]", i);
    if (!tools[i].is_object()) {
      bad.fail(bad_field(at, "expected an object"));
      break;
    }
    const std::string type = text_field(tools[i], "type");
    if (type != "function") {
      bad.fail(unsupported_field(at, "of type " + type));
      break;
    }
    OrderedJson tool;
    tool["type"] = "function";
    for (const char* name : {"name", "description", "parameters", "strict"}) {
      if (tools[i].contains(name) && !tools[i][name].is_null()) tool["function"][name] = tools[i][name];
    }
    out.push_back(std::move(tool));
  }
  return out;
}

}  // namespace

std::variant<OrderedJson, ApiError> chat_body_of_response_request(const OrderedJson& body) {
  Bad bad;
  const auto given = [&](const char* name) { return body.contains(name) && !body[name].is_null(); };
  for (const char* name : {"previous_response_id", "conversation", "prompt", "max_tool_calls"}) {
    if (given(name)) return unsupported_field(name);
  }
  if (given("background") && body["background"] != false) return unsupported_field("background");
  if (given("truncation") && body["truncation"] != "disabled") return unsupported_field("truncation", "\"auto\"");
  if (given("top_logprobs") && body["top_logprobs"] != 0) return unsupported_field("top_logprobs");
  if (given("include") && body["include"] != OrderedJson::array()) return unsupported_field("include");
  if (given("messages")) return bad_field("messages", "this path takes \"input\"");
  OrderedJson chat;
  // What has a meaning of its own here is translated; the rest is a chat's and keeps its name.
  static constexpr std::array<std::string_view, 18> own = {"input",
                                                           "instructions",
                                                           "tools",
                                                           "text",
                                                           "reasoning",
                                                           "max_output_tokens",
                                                           "store",
                                                           "background",
                                                           "include",
                                                           "truncation",
                                                           "previous_response_id",
                                                           "conversation",
                                                           "prompt",
                                                           "max_tool_calls",
                                                           "top_logprobs",
                                                           "tool_choice",
                                                           "stream_options",
                                                           "n"};
  for (auto it = body.begin(); it != body.end(); ++it) {
    if (std::find(own.begin(), own.end(), it.key()) == own.end()) chat[it.key()] = it.value();
  }
  chat["messages"] = messages_of(body, bad);
  if (given("tools")) {
    OrderedJson tools = tools_of(body["tools"], bad);
    if (!tools.empty()) chat["tools"] = std::move(tools);
  }
  if (given("tool_choice") && (chat.contains("tools") || body["tool_choice"] != "auto")) {
    chat["tool_choice"] = body["tool_choice"];
  }
  if (given("max_output_tokens")) chat["max_completion_tokens"] = body["max_output_tokens"];
  if (given("text")) {
    if (!body["text"].is_object()) bad.fail(bad_field("text", "expected an object"));
    if (body["text"].is_object() && body["text"].contains("format")) chat["response_format"] = body["text"]["format"];
  }
  if (given("reasoning")) {
    if (!body["reasoning"].is_object()) bad.fail(bad_field("reasoning", "expected an object"));
    if (body["reasoning"].is_object() && body["reasoning"].contains("effort")) {
      chat["reasoning_effort"] = body["reasoning"]["effort"];
    }
  }
  if (bad.error) return *std::move(bad.error);
  return chat;
}

ResponsesWriter::ResponsesWriter(CompletionCall call, const OrderedJson& request, const ModelService& model,
                                 std::string id, int64_t created)
    : call_(std::move(call)),
      model_(model),
      id_(std::move(id)),
      created_(created),
      reasoning_parser_(call_.reasoning_open),
      tool_parser_(call_.tool_format) {
  const auto repeat = [&](const char* name, OrderedJson otherwise) {
    settings_[name] = request.contains(name) && !request[name].is_null() ? request[name] : std::move(otherwise);
  };
  repeat("instructions", nullptr);
  repeat("max_output_tokens", nullptr);
  repeat("metadata", OrderedJson::object());
  repeat("parallel_tool_calls", true);
  settings_["previous_response_id"] = nullptr;
  repeat("reasoning", {{"effort", nullptr}, {"summary", nullptr}});
  settings_["store"] = false;
  settings_["temperature"] = call_.sampling.temperature;
  repeat("text", {{"format", {{"type", "text"}}}});
  repeat("tool_choice", "auto");
  repeat("tools", OrderedJson::array());
  settings_["top_p"] = call_.sampling.top_p;
  settings_["truncation"] = "disabled";
  repeat("user", nullptr);
}

void ResponsesWriter::add(size_t, OutputPiece piece, std::string& out) {
  if (finish_ != FinishReason::none) return;
  if (piece.prompt_tokens > 0) prompt_tokens_ = piece.prompt_tokens;
  cached_tokens_ = std::max(cached_tokens_, piece.cached_tokens);
  output_tokens_ = std::max(output_tokens_, piece.output_tokens);
  finish_ = piece.finish;
  if (piece.finish == FinishReason::error || piece.finish == FinishReason::cancelled) {
    error_ = piece.error ? api_error(*piece.error)
             : piece.finish == FinishReason::cancelled
                 ? ApiError{.status = 503, .message = "the request was cancelled by the server", .code = "cancelled"}
                 : ApiError{.status = 500, .message = "generation failed"};
    return;
  }
  if (!begun_) {
    begun_ = true;
    event("response.created", {{"response", body("in_progress")}}, out);
    event("response.in_progress", {{"response", body("in_progress")}}, out);
  }
  const bool ended = piece.finish != FinishReason::none;
  std::string reasoning;
  std::vector<ToolCall> calls;
  if (call_.reasoning) {
    std::string content;
    reasoning_parser_.add(piece.text, ended, reasoning, content);
    if (!reasoning.empty() && content.empty()) reasoning_tokens_ += static_cast<int32_t>(piece.tokens.size());
    piece.text = std::move(content);
  }
  if (call_.tool_format != ToolFormat::none) {
    std::string content;
    tool_parser_.add(piece.text, ended, content, calls);
    piece.text = std::move(content);
  }
  append(Item::Kind::reasoning, reasoning, out);
  append(Item::Kind::message, piece.text, out);
  for (const ToolCall& call : calls) {
    const bool another = std::ranges::any_of(items_, [](const Item& i) { return i.kind == Item::Kind::call; });
    if (!call_.one_tool_call || !another) add_call(call, out);
  }
  if (!ended) return;
  close(out);
  if (items_.empty()) {  // an empty answer is an answer
    open(Item::Kind::message, out);
    close(out);
  }
}

void ResponsesWriter::append(Item::Kind kind, const std::string& text, std::string& out) {
  if (text.empty()) return;
  if (!open_ || items_.back().kind != kind) {
    close(out);
    open(kind, out);
  }
  Item& item = items_.back();
  item.text += text;
  OrderedJson delta;
  delta["item_id"] = item.id;
  delta["output_index"] = items_.size() - 1;
  delta["content_index"] = 0;
  delta["delta"] = text;
  if (kind == Item::Kind::message) delta["logprobs"] = OrderedJson::array();
  event(kind == Item::Kind::message ? "response.output_text.delta" : "response.reasoning_text.delta", delta, out);
}

void ResponsesWriter::add_call(const ToolCall& call, std::string& out) {
  close(out);
  Item& item = open(Item::Kind::call, out, call.name);
  item.text = call.arguments;
  OrderedJson fields;
  fields["item_id"] = item.id;
  fields["output_index"] = items_.size() - 1;
  fields["delta"] = call.arguments;
  event("response.function_call_arguments.delta", fields, out);
  close(out);
}

ResponsesWriter::Item& ResponsesWriter::open(Item::Kind kind, std::string& out, const std::string& name) {
  const auto prefix = kind == Item::Kind::message ? "msg" : kind == Item::Kind::reasoning ? "rs" : "fc";
  items_.push_back({.kind = kind,
                    .id = fmt::format("{}_{}_{}", prefix, id_, items_.size()),
                    .text = {},
                    .call_id = {},
                    .name = name});
  Item& item = items_.back();
  if (kind == Item::Kind::call) item.call_id = fmt::format("call_{}_{}", id_, items_.size() - 1);
  open_ = true;
  OrderedJson added;
  added["output_index"] = items_.size() - 1;
  added["item"] = item_json(item, false);
  event("response.output_item.added", added, out);
  if (kind == Item::Kind::call) return item;
  OrderedJson part;
  part["item_id"] = item.id;
  part["output_index"] = items_.size() - 1;
  part["content_index"] = 0;
  part["part"]["type"] = kind == Item::Kind::message ? "output_text" : "reasoning_text";
  part["part"]["text"] = "";
  if (kind == Item::Kind::message) part["part"]["annotations"] = OrderedJson::array();
  event("response.content_part.added", part, out);
  return item;
}

void ResponsesWriter::close(std::string& out) {
  if (!open_) return;
  open_ = false;
  const Item& item = items_.back();
  const OrderedJson done = item_json(item, true);
  OrderedJson fields;
  fields["item_id"] = item.id;
  fields["output_index"] = items_.size() - 1;
  if (item.kind == Item::Kind::call) {
    fields["name"] = item.name;
    fields["arguments"] = item.text;
    event("response.function_call_arguments.done", fields, out);
  } else {
    const bool message = item.kind == Item::Kind::message;
    fields["content_index"] = 0;
    OrderedJson text = fields;
    text["text"] = item.text;
    if (message) text["logprobs"] = OrderedJson::array();
    event(message ? "response.output_text.done" : "response.reasoning_text.done", text, out);
    fields["part"] = done["content"][0];
    event("response.content_part.done", fields, out);
  }
  OrderedJson whole;
  whole["output_index"] = items_.size() - 1;
  whole["item"] = done;
  event("response.output_item.done", whole, out);
}

void ResponsesWriter::event(std::string_view type, OrderedJson fields, std::string& out) {
  if (!call_.stream) return;
  OrderedJson body;
  body["type"] = type;
  body["sequence_number"] = sequence_number_++;
  for (auto it = fields.begin(); it != fields.end(); ++it) body[it.key()] = std::move(it.value());
  out += fmt::format("event: {}\ndata: {}\n\n", type, dump(body));
}

OrderedJson ResponsesWriter::item_json(const Item& item, bool complete) const {
  OrderedJson out;
  out["id"] = item.id;
  const char* status = complete ? "completed" : "in_progress";
  if (item.kind == Item::Kind::call) {
    out["type"] = "function_call";
    out["call_id"] = item.call_id;
    out["name"] = item.name;
    out["arguments"] = item.text;
    out["status"] = status;
    return out;
  }
  out["type"] = item.kind == Item::Kind::message ? "message" : "reasoning";
  out["status"] = status;
  if (item.kind == Item::Kind::message) out["role"] = "assistant";
  if (item.kind == Item::Kind::reasoning) out["summary"] = OrderedJson::array();
  out["content"] = OrderedJson::array();
  if (!complete) return out;
  OrderedJson part;
  part["type"] = item.kind == Item::Kind::message ? "output_text" : "reasoning_text";
  part["text"] = item.text;
  if (item.kind == Item::Kind::message) part["annotations"] = OrderedJson::array();
  out["content"].push_back(std::move(part));
  return out;
}

OrderedJson ResponsesWriter::body(std::string_view status) const {
  OrderedJson out;
  out["id"] = id_;
  out["object"] = "response";
  out["created_at"] = created_;
  out["status"] = status;
  out["background"] = false;
  out["error"] = nullptr;
  out["incomplete_details"] = nullptr;
  if (status == "incomplete") out["incomplete_details"]["reason"] = "max_output_tokens";
  out["model"] = model_.name;
  out["output"] = OrderedJson::array();
  for (const Item& item : items_) out["output"].push_back(item_json(item, true));
  for (auto it = settings_.begin(); it != settings_.end(); ++it) out[it.key()] = it.value();
  out["usage"] = nullptr;
  if (status == "in_progress") return out;
  OrderedJson& usage = out["usage"];
  usage["input_tokens"] = prompt_tokens_;
  usage["input_tokens_details"]["cached_tokens"] = cached_tokens_;
  usage["output_tokens"] = output_tokens_;
  usage["output_tokens_details"]["reasoning_tokens"] = reasoning_tokens_;
  usage["total_tokens"] = prompt_tokens_ + output_tokens_;
  return out;
}

void ResponsesWriter::end(std::string& out) {
  const bool cut = finish_ == FinishReason::length;
  event(cut ? "response.incomplete" : "response.completed", {{"response", body(cut ? "incomplete" : "completed")}},
        out);
}

std::string ResponsesWriter::error_event(const ApiError& error) const {
  OrderedJson event;
  event["type"] = "response.failed";
  event["sequence_number"] = sequence_number_;
  event["response"] = body("failed");
  event["response"]["error"]["code"] = error.status >= 500 ? "server_error" : error.code;
  event["response"]["error"]["message"] = error.message;
  return fmt::format("event: response.failed\ndata: {}\n\n", dump(event));
}

HttpResponse ResponsesWriter::response() {
  return {.body = dump(body(finish_ == FinishReason::length ? "incomplete" : "completed"))};
}

ResponseWriter::Totals ResponsesWriter::totals() const {
  return {.prompt_tokens = prompt_tokens_, .cached_tokens = cached_tokens_, .output_tokens = output_tokens_};
}

std::string_view ResponsesWriter::finish(size_t) const {
  return finish_name(finish_);
}

}  // namespace pinion
