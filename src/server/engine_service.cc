#include "server/engine_service.h"

namespace pinion {

Result<uint64_t> EngineGenerator::submit(Request request, OutputSink sink) {
  return loop_.submit(std::move(request), std::move(sink));
}
void EngineGenerator::cancel(uint64_t ticket) {
  loop_.cancel(ticket);
}
LoopStats EngineGenerator::stats() const {
  return loop_.stats();
}
std::string EngineGenerator::failure() const {
  return loop_.failure();
}

// Templates of models that reason cut it out of earlier answers at the closing tag.
ModelText::ModelText(const Tokenizer& tokenizer, const ChatTemplate* chat_template, std::optional<ToolFormat> tools,
                     std::optional<bool> reasoning)
    : tokenizer_(tokenizer),
      template_(chat_template),
      tool_format_(tools           ? *tools
                   : chat_template ? tool_format_of(chat_template->source())
                                   : ToolFormat::none),
      writes_reasoning_(
          reasoning.value_or(chat_template && chat_template->source().find("</think>") != std::string::npos)) {}

std::vector<int32_t> ModelText::encode(std::string_view text, bool add_special_tokens) const {
  return tokenizer_.encode(text, add_special_tokens);
}
std::string ModelText::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  return tokenizer_.decode(ids, skip_special_tokens);
}
std::string ModelText::token_bytes(int32_t id) const {
  return tokenizer_.token_bytes(id);
}
std::string ModelText::token_name(int32_t id) const {
  return std::string(tokenizer_.id_to_token(id));
}

Result<std::string> ModelText::render(const OrderedJson& messages, const OrderedJson& tools, bool add_generation_prompt,
                                      const OrderedJson& extra) const {
  return template_->render(
      {.messages = messages, .tools = tools, .add_generation_prompt = add_generation_prompt, .extra = extra});
}

}  // namespace pinion
