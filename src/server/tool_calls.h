// Finds the tool calls that models write into their text, which comes in pieces: each family has a form of its own.
// Text outside of calls passes through at once; what looks like a call and is none stays text.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pinion {

enum class ToolFormat : uint8_t {
  none,
  hermes,       // <tool_call>{"name", "arguments"}</tool_call>, any number: Qwen2.5, Qwen3, Hermes
  llama3_json,  // the whole text is {"name", "parameters"}, several separated by ";", maybe behind <|python_tag|>
  mistral,      // [TOOL_CALLS][{"name", "arguments"}, …], or [TOOL_CALLS]name{…} for each (tokenizers from v11 on)
  deepseek_v3,  // <｜tool▁calls▁begin｜>… with fenced JSON (V3, R1) or bare JSON (V3.1)
};
std::string_view name(ToolFormat format);  // as in --tool_call_parser
std::optional<ToolFormat> parse_tool_format(std::string_view text);
// The form that a chat template shows the model or expects back; none when it has no form that is known.
ToolFormat tool_format_of(std::string_view chat_template);
// Its markers are special tokens: the text must be made with them.
bool marked_by_special_tokens(ToolFormat format);

struct ToolCall {
  std::string name, arguments;  // arguments: a JSON object's text
};

class ToolCallParser {
 public:
  explicit ToolCallParser(ToolFormat format = ToolFormat::hermes) : format_(format) {}
  // What the text since the last call adds. `end`: nothing more comes, so what is held back goes out.
  void add(std::string_view text, bool end, std::string& content, std::vector<ToolCall>& calls);

 private:
  bool take_block(std::string& content, std::vector<ToolCall>& calls, bool end);
  ToolFormat format_;
  std::string held_;
  bool begun_ = false, any_call_ = false;  // begun_: text that is not blank has passed
};

}  // namespace pinion
