// The JSON of /v1/chat/completions and /v1/completions, read into native types: everything is checked, templated and
// tokenised here, so that what leaves is ready to submit.
//
// Fields that are unknown are ignored, as OpenAI and vLLM do, or refused with `strict`. Fields that are known, would
// change the answer and are not implemented are refused by name.
#pragma once

#include <optional>
#include <variant>

#include "server/http_message.h"
#include "server/request_fields.h"
#include "server/service.h"

namespace pinion {

struct RequestLimits {
  int32_t max_choices = 128;  // prompts x max(n, best_of)
  size_t max_messages = 4096;
  bool strict_fields = false;
};

struct CompletionCall {
  bool chat = false;
  std::vector<std::vector<int32_t>> prompts;
  SamplingParams sampling;  // max_tokens is per prompt: see max_tokens()
  std::optional<int32_t> max_tokens;
  int32_t n = 1, best_of = 1, priority = 0;
  bool stream = false, include_usage = false, continuous_usage = false;
  bool echo = false;
  bool token_ids = false;                          // return_token_ids: the tokens with the text
  bool logprobs = false;                           // in the answer; sampling.logprobs may ask the engine for more
  ToolFormat tool_format = ToolFormat::none;       // what of the answer becomes tool_calls
  bool one_tool_call = false;                      // parallel_tool_calls: false
  bool reasoning = false, reasoning_open = false;  // split it off; the prompt ends inside of it
  bool show_reasoning = true;                      // include_reasoning
  int32_t keep_prompt_tokens = 0;                  // truncate_prompt_tokens: the last ones; 0: all
  std::string cache_salt;
  int32_t max_seq_len = 0;

  int32_t tokens_for(size_t prompt) const;                     // max_tokens of that prompt's sequences
  std::vector<Request> requests(const std::string& id) const;  // prompt-major, best_of each
};

using ParsedCall = std::variant<CompletionCall, ApiError>;
ParsedCall parse_chat_call(const OrderedJson& body, const ModelService& model, const RequestLimits& limits);
ParsedCall parse_completion_call(const OrderedJson& body, const ModelService& model, const RequestLimits& limits);

// Shared with /tokenize: `messages` checked and brought into the form that templates read.
OrderedJson read_messages(RequestFields& fields, const RequestLimits& limits);
OrderedJson read_tools(RequestFields& fields);
OrderedJson read_template_arguments(RequestFields& fields);
void read_model(RequestFields& fields, const ModelService& model);
// Errors when `body` is not an object, or, with strict, has a field that nothing read.
std::optional<ApiError> check_unknown(const RequestFields& fields, const RequestLimits& limits);
// A prompt of token ids; `param` for the error.
std::vector<int32_t> read_token_ids(RequestFields& fields, const OrderedJson& array, std::string_view param,
                                    int32_t vocab_size);

}  // namespace pinion
