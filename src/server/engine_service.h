// The real service: EngineLoop, Tokenizer and ChatTemplate behind the server's interfaces.
//
//   EngineGenerator generator(loop);
//   ModelText text(tokenizer, chat_template);
//   ModelService service{.generator = &generator, .text = &text, .name = …, .max_seq_len = loop.options().max_seq_len,
//                        .vocab_size = …, .defaults = …};
#pragma once

#include <optional>

#include "server/service.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace pinion {

class EngineGenerator final : public Generator {
 public:
  explicit EngineGenerator(EngineLoop& loop) : loop_(loop) {}  // borrowed
  Result<uint64_t> submit(Request request, OutputSink sink) override;
  void cancel(uint64_t ticket) override;
  LoopStats stats() const override;
  std::string failure() const override;

 private:
  EngineLoop& loop_;
};

class ModelText final : public TextCodec {
 public:
  // Borrowed; the template may be null. Not given: the forms of tool calls and reasoning that the template shows.
  ModelText(const Tokenizer& tokenizer, const ChatTemplate* chat_template, std::optional<ToolFormat> tools = {},
            std::optional<bool> reasoning = {});
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const override;
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override;
  std::string token_bytes(int32_t id) const override;
  std::string token_name(int32_t id) const override;
  bool has_chat_template() const override { return template_ != nullptr; }
  ToolFormat tool_format() const override { return tool_format_; }
  bool writes_reasoning() const override { return writes_reasoning_; }
  Result<std::string> render(const OrderedJson& messages, const OrderedJson& tools, bool add_generation_prompt,
                             const OrderedJson& extra) const override;

 private:
  const Tokenizer& tokenizer_;
  const ChatTemplate* template_;
  const ToolFormat tool_format_;
  const bool writes_reasoning_;
};

}  // namespace pinion
