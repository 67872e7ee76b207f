// Finds the <tool_call>{"name": …, "arguments": {…}}</tool_call> blocks that Hermes and Qwen models write in a text
// that comes in pieces. Text outside of blocks passes through; a block that is not valid stays text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pinion {

struct ToolCall {
  std::string name, arguments;  // arguments: a JSON object's text
};

class ToolCallParser {
 public:
  // What the text since the last call adds. `end`: nothing more comes, so what is held back goes out.
  void add(std::string_view text, bool end, std::string& content, std::vector<ToolCall>& calls);

 private:
  bool take_block(std::string& content, std::vector<ToolCall>& calls, bool end);
  std::string held_;
  bool any_call_ = false;
};

}  // namespace pinion
