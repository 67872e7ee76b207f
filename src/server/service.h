// What the server serves, as it sees it: something that generates and something that knows text. The real ones are
// adapters onto EngineLoop, Tokenizer and ChatTemplate (engine_service.h); tests use small fakes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "runtime/engine_loop.h"
#include "runtime/request.h"
#include "server/tool_calls.h"

namespace pinion {

class Generator {
 public:
  virtual ~Generator() = default;
  // As EngineLoop::submit: Errc::exhausted means that the queue is full, invalid_argument that it can never fit. The
  // sink is called on a thread of the generator's until a piece with finish != none.
  virtual Result<uint64_t> submit(Request request, OutputSink sink) = 0;
  virtual void cancel(uint64_t ticket) = 0;  // of a finished request: does nothing
  virtual LoopStats stats() const = 0;
  virtual std::string failure() const { return {}; }  // why it can serve no more, empty while it can
};

// Thread-safe.
class TextCodec {
 public:
  virtual ~TextCodec() = default;
  virtual std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const = 0;
  virtual std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const = 0;
  virtual std::string token_bytes(int32_t id) const = 0;  // of one token; may be part of a character
  virtual std::string token_name(int32_t id) const = 0;   // as the tokenizer's file spells it
  virtual bool has_chat_template() const = 0;
  virtual ToolFormat tool_format() const = 0;  // how the model writes tool calls; none: it was not taught to
  virtual bool writes_reasoning() const = 0;   // between <think> and </think>, before its answer
  virtual Result<std::string> render(const OrderedJson& messages, const OrderedJson& tools, bool add_generation_prompt,
                                     const OrderedJson& extra) const = 0;
};

struct ModelService {
  Generator* generator = nullptr;   // borrowed
  const TextCodec* text = nullptr;  // borrowed
  std::string name;                 // what clients write into "model"
  int32_t max_seq_len = 0;          // prompt and output
  int32_t vocab_size = 0;
  SamplingParams defaults;     // of generation_config.json; max_tokens is not read
  bool exclude_input = false;  // KServe: answers do not begin with the prompt unless the request says so
};

}  // namespace pinion
