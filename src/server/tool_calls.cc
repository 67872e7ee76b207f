#include "server/tool_calls.h"

#include "base/json.h"
#include "server/http_message.h"

namespace pinion {
namespace {

constexpr std::string_view open_tag = "<tool_call>", close_tag = "</tool_call>";

bool parse_call(std::string_view text, ToolCall& call) {
  auto json = parse_ordered_json(text, "tool call");
  if (!json || !json->is_object() || !json->contains("name") || !(*json)["name"].is_string()) return false;
  call.name = (*json)["name"].get<std::string>();
  const OrderedJson arguments = json->contains("arguments") ? (*json)["arguments"] : OrderedJson::object();
  if (!arguments.is_object()) return false;
  call.arguments = dump(arguments);
  return true;
}

// The length of the longest end of `text` that `tag` begins with: it may become a tag with the next piece.
size_t tag_begun(std::string_view text, std::string_view tag) {
  for (size_t n = std::min(text.size(), tag.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == tag.substr(0, n)) return n;
  }
  return 0;
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

}  // namespace

void ToolCallParser::add(std::string_view text, bool end, std::string& content, std::vector<ToolCall>& calls) {
  held_ += text;
  while (take_block(content, calls, end)) {
  }
}

bool ToolCallParser::take_block(std::string& content, std::vector<ToolCall>& calls, bool end) {
  const size_t begin = held_.find(open_tag);
  if (begin == std::string::npos) {
    size_t pass = held_.size() - (end ? 0 : tag_begun(held_, open_tag));
    const std::string_view head = std::string_view(held_).substr(0, pass);
    // Blanks may be the space before a block or between two, which belongs to no one.
    if (!end && is_blank(head)) return false;
    if (!(any_call_ && is_blank(head))) content += head;
    held_.erase(0, pass);
    return false;
  }
  if (const std::string_view head = std::string_view(held_).substr(0, begin); !is_blank(head)) content += head;
  held_.erase(0, begin);
  const size_t close = held_.find(close_tag);
  if (close == std::string::npos) {
    if (!end) return false;
    // Some models end with EOS in place of the closing tag.
    ToolCall call;
    if (parse_call(std::string_view(held_).substr(open_tag.size()), call)) {
      calls.push_back(std::move(call));
      any_call_ = true;
    } else {
      content += held_;
    }
    held_.clear();
    return false;
  }
  ToolCall call;
  if (parse_call(std::string_view(held_).substr(open_tag.size(), close - open_tag.size()), call)) {
    calls.push_back(std::move(call));
    any_call_ = true;
  } else {
    content.append(held_, 0, close + close_tag.size());
  }
  held_.erase(0, close + close_tag.size());
  return true;
}

}  // namespace pinion
