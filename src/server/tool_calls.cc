#include "server/tool_calls.h"

#include <algorithm>
#include <array>

#include "base/json.h"
#include "server/http_message.h"

namespace pinion {
namespace {

using Calls = std::optional<std::vector<ToolCall>>;  // none: the block is not what its markers promise

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_blank(text.substr(0, 1))) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.substr(text.size() - 1))) text.remove_suffix(1);
  return text;
}

// {"name": …, "arguments" or "parameters": {…}}
std::optional<ToolCall> call_of(const OrderedJson& json) {
  if (!json.is_object() || !json.contains("name") || !json["name"].is_string()) return {};
  const char* key = json.contains("arguments") ? "arguments" : "parameters";
  const OrderedJson arguments = json.contains(key) ? json[key] : OrderedJson::object();
  if (!arguments.is_object()) return {};
  return ToolCall{json["name"].get<std::string>(), dump(arguments)};
}

std::optional<ToolCall> named_call(std::string_view name, std::string_view arguments) {
  const auto json = parse_ordered_json(arguments, "tool call");
  if (name.empty() || !json || !json->is_object()) return {};
  return ToolCall{std::string(name), dump(*json)};
}

// The length of the JSON object or array that `text` begins with; 0 if it does not end.
size_t json_length(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      quoted = c != '"';
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && --depth == 0) {
      return i + 1;
    }
  }
  return 0;
}

Calls read_hermes(std::string_view body) {
  const auto json = parse_ordered_json(body, "tool call");
  if (!json) return {};
  const auto call = call_of(*json);
  return call ? Calls({*call}) : Calls();
}

Calls read_llama3(std::string_view body) {
  std::vector<ToolCall> calls;
  for (body = trim(body); !body.empty();) {
    const size_t length = json_length(body);
    const auto json = parse_ordered_json(body.substr(0, length), "tool call");
    // A JSON object that is an answer has no "parameters".
    if (length == 0 || !json || !(json->contains("parameters") || json->contains("arguments"))) return {};
    const auto call = call_of(*json);
    if (!call) return {};
    calls.push_back(*call);
    body = trim(body.substr(length));
    if (!body.empty() && body.front() != ';') return {};
    if (!body.empty()) body = trim(body.substr(1));
  }
  return calls.empty() ? Calls() : Calls(std::move(calls));
}

Calls read_mistral(std::string_view body) {
  constexpr std::string_view marker = "[TOOL_CALLS]", arguments = "[ARGS]";
  std::vector<ToolCall> calls;
  body = trim(body);
  if (body.starts_with("[{") || body.starts_with("[ {")) {
    const auto json = parse_ordered_json(body.substr(0, json_length(body)), "tool calls");
    if (!json || !json->is_array()) return {};
    for (const OrderedJson& entry : *json) {
      const auto call = call_of(entry);
      if (!call) return {};
      calls.push_back(*call);
    }
    return calls.empty() ? Calls() : Calls(std::move(calls));
  }
  while (!body.empty()) {
    const size_t end = std::min(body.find(marker), body.size());
    std::string_view one = body.substr(0, end);
    const size_t brace = one.find('{');
    if (brace == std::string_view::npos) return {};
    std::string_view name = one.substr(0, brace);
    if (const size_t at = name.find(arguments); at != std::string_view::npos) name = name.substr(0, at);
    const auto call = named_call(trim(name), one.substr(brace));
    if (!call) return {};
    calls.push_back(*call);
    body = trim(body.substr(std::min(body.size(), end + marker.size())));
  }
  return calls.empty() ? Calls() : Calls(std::move(calls));
}

Calls read_deepseek(std::string_view body) {
  constexpr std::string_view open = "<｜tool▁call▁begin｜>", middle = "<｜tool▁sep｜>", close = "<｜tool▁call▁end｜>";
  std::vector<ToolCall> calls;
  while (!(body = trim(body)).empty()) {
    const size_t separator = body.find(middle);
    if (!body.starts_with(open) || separator == std::string_view::npos) return {};
    const std::string_view head = trim(body.substr(open.size(), separator - open.size()));
    const size_t end = std::min(body.find(close, separator), body.size());
    std::string_view rest = body.substr(separator + middle.size(), end - separator - middle.size());
    std::string_view name = head;
    if (const size_t fence = rest.find("```json"); head == "function" && fence != std::string_view::npos) {
      name = trim(rest.substr(0, fence));
      rest = rest.substr(fence + 7);
      rest = rest.substr(0, rest.rfind("```"));
    }
    const auto call = named_call(name, rest);
    if (!call) return {};
    calls.push_back(*call);
    body = body.substr(std::min(body.size(), end + close.size()));
  }
  return calls.empty() ? Calls() : Calls(std::move(calls));
}

struct Form {
  ToolFormat format;
  std::string_view name, open, close;  // close empty: a block goes to the end of the text
  bool bare;                           // the text may also begin with a block's body, without `open`
  bool special_tokens;
  std::string_view template_mark;  // what gives the form away in a chat template
  Calls (*read)(std::string_view body);
};
// In the order in which templates are tried.
constexpr std::array kForms{
    Form{ToolFormat::mistral, "mistral", "[TOOL_CALLS]", "", false, true, "[TOOL_CALLS]", read_mistral},
    Form{ToolFormat::deepseek_v3, "deepseek_v3", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", false, true,
         "<｜tool▁calls▁begin｜>", read_deepseek},
    Form{ToolFormat::hermes, "hermes", "<tool_call>", "</tool_call>", false, false, "<tool_call>", read_hermes},
    Form{ToolFormat::llama3_json, "llama3_json", "<|python_tag|>", "", true, true,
         R"(Respond in the format {"name": function name, "parameters": )", read_llama3},
};

const Form& form_of(ToolFormat format) {
  return *std::ranges::find(kForms, format, &Form::format);
}

// The length of the longest end of `text` that `tag` begins with: it may become a tag with the next piece.
size_t tag_begun(std::string_view text, std::string_view tag) {
  for (size_t n = std::min(text.size(), tag.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == tag.substr(0, n)) return n;
  }
  return 0;
}

}  // namespace

std::string_view name(ToolFormat format) {
  return format == ToolFormat::none ? "none" : form_of(format).name;
}

std::optional<ToolFormat> parse_tool_format(std::string_view text) {
  if (text == "none") return ToolFormat::none;
  const auto form = std::ranges::find(kForms, text, &Form::name);
  return form == kForms.end() ? std::optional<ToolFormat>() : form->format;
}

ToolFormat tool_format_of(std::string_view chat_template) {
  for (const Form& form : kForms) {
    if (chat_template.find(form.template_mark) != std::string_view::npos) return form.format;
  }
  return ToolFormat::none;
}

bool marked_by_special_tokens(ToolFormat format) {
  return format != ToolFormat::none && form_of(format).special_tokens;
}

void ToolCallParser::add(std::string_view text, bool end, std::string& content, std::vector<ToolCall>& calls) {
  if (format_ == ToolFormat::none) {
    content += text;
    return;
  }
  held_ += text;
  while (take_block(content, calls, end)) {
  }
}

bool ToolCallParser::take_block(std::string& content, std::vector<ToolCall>& calls, bool end) {
  const Form& form = form_of(format_);
  size_t begin = held_.find(form.open), open = form.open.size();
  const size_t first = held_.find_first_not_of(" \t\r\n");
  if (form.bare && !begun_ && !any_call_ && first != std::string::npos && held_[first] == '{') begin = first, open = 0;
  if (begin == std::string::npos) {
    const size_t pass = held_.size() - (end ? 0 : tag_begun(held_, form.open));
    const std::string_view head = std::string_view(held_).substr(0, pass);
    // Blanks may be the space before a block or between two, which belongs to no one.
    if (!end && is_blank(head)) return false;
    if (!(any_call_ && is_blank(head))) content += head;
    begun_ |= !is_blank(head);
    held_.erase(0, pass);
    return false;
  }
  if (const std::string_view head = std::string_view(held_).substr(0, begin); !is_blank(head)) {
    content += head;
    begun_ = true;
  }
  held_.erase(0, begin);
  const size_t close = form.close.empty() ? std::string::npos : held_.find(form.close, open);
  if (close == std::string::npos && !end) return false;
  // Without the closing marker: some models end with EOS in its place.
  const size_t body_end = std::min(close, held_.size());
  const size_t block_end = close == std::string::npos ? held_.size() : close + form.close.size();
  if (const Calls found = form.read(std::string_view(held_).substr(open, body_end - open))) {
    calls.insert(calls.end(), found->begin(), found->end());
    any_call_ = true;
  } else {
    content.append(held_, 0, block_end);
    begun_ = true;
  }
  held_.erase(0, block_end);
  return !held_.empty();
}

}  // namespace pinion
