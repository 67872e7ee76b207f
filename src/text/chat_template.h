// A model's chat template: messages in, prompt text out, as transformers' apply_chat_template renders it (immutable
// sandbox, trim_blocks, lstrip_blocks, loop controls, {% generation %}). A template that misbehaves costs bounded time,
// memory and stack, and returns an error with its line.
#pragma once

#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace pinion {

namespace jinja {
struct Template;
class Interpreter;
class Value;
Value value_from_json(Interpreter& in, const OrderedJson& json);
}  // namespace jinja

struct ChatInput {
  OrderedJson messages = OrderedJson::array();
  OrderedJson tools;  // null: none; then the template sees none, not undefined
  bool add_generation_prompt = true;
  OrderedJson extra = OrderedJson::object();  // template kwargs: enable_thinking, documents, …
  std::optional<std::time_t> now;             // for strftime_now; the clock otherwise
};

class ChatTemplate {
 public:
  // Errors: corrupt with the line for a syntax error; unsupported, by name, for what the engine does not have.
  static Result<ChatTemplate> parse(std::string source);

  // From chat_template.jinja, else chat_template.json, else tokenizer_config.json; nullopt when the model has none.
  // Special tokens (bos_token, …) come from tokenizer_config.json, and from special_tokens_map.json where absent there.
  static Result<std::optional<ChatTemplate>> load(const std::filesystem::path& model_dir);

  // Errors: invalid_argument for raise_exception, with its message, and for what Python would raise; also for budgets
  // that ran out.
  Result<std::string> render(const ChatInput& input) const;

  const std::string& source() const { return source_; }
  // Whether the template reads messages' content as a list of parts ({"type": "text", …}); otherwise callers join the
  // parts to one string first.
  bool reads_content_parts() const { return reads_content_parts_; }
  void set_special_token(std::string_view name, std::string_view text) { special_tokens_[std::string(name)] = text; }

 private:
  std::string source_;
  bool reads_content_parts_ = false;
  std::shared_ptr<const jinja::Template> default_, tool_use_;  // tool_use_: chosen when tools are given; may be null
  OrderedJson special_tokens_ = OrderedJson::object();
};

}  // namespace pinion
