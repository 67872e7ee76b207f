#include "server/openai_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "server/reasoning.h"
#include "server/sampling_fields.h"

namespace pinion {
namespace {

constexpr size_t max_name_bytes = 256;

void read_choices(RequestFields& fields, const RequestLimits& limits, CompletionCall& call) {
  fields.integer("n", 1, limits.max_choices, call.n);
  call.best_of = call.n;
  fields.integer("best_of", 1, limits.max_choices, call.best_of);
  if (call.best_of < call.n)
    fields.fail(bad_field("best_of", fmt::format("{} is less than n ({})", call.best_of, call.n)));
  if (call.best_of > call.n && call.stream) fields.fail(bad_field("best_of", "more than n cannot be streamed"));
  const auto choices = static_cast<int64_t>(call.best_of) * static_cast<int64_t>(call.prompts.size());
  if (fields.ok() && choices > limits.max_choices) {
    fields.fail(bad_field(call.best_of > 1 ? "n" : "prompt", fmt::format("{} sequences in one request, at most {} are "
                                                                         "allowed",
                                                                         choices, limits.max_choices)));
  }
}

// Both numbers in the message: what clients need to shorten the prompt.
void check_context(RequestFields& fields, const ModelService& model, CompletionCall& call) {
  const auto most = static_cast<size_t>(call.keep_prompt_tokens);
  for (auto& prompt : call.prompts) {
    if (most > 0 && prompt.size() > most) prompt.erase(prompt.begin(), prompt.end() - call.keep_prompt_tokens);
  }
  for (const auto& prompt : call.prompts) {
    const auto asked = static_cast<int64_t>(prompt.size()) + call.max_tokens.value_or(1);
    if (asked <= model.max_seq_len) continue;
    ApiError error = bad_field(
        prompt.size() >= static_cast<size_t>(model.max_seq_len) ? (call.chat ? "messages" : "prompt") : "max_tokens",
        fmt::format("the prompt has {} tokens and {} are asked for, the model's limit is {} for both together",
                    prompt.size(), call.max_tokens.value_or(1), model.max_seq_len));
    error.code = "context_length_exceeded";
    return fields.fail(error);
  }
  if (fields.ok() && call.sampling.min_tokens > 0 && call.max_tokens && call.sampling.min_tokens > *call.max_tokens) {
    fields.fail(bad_field("min_tokens",
                          fmt::format("{} is more than max_tokens ({})", call.sampling.min_tokens, *call.max_tokens)));
  }
}

void read_common(RequestFields& fields, const ModelService& model, CompletionCall& call) {
  read_model(fields, model);
  call.max_seq_len = model.max_seq_len;
  read_sampling(fields, model, call.sampling);
  read_stream_options(fields, call);
  fields.integer("priority", std::numeric_limits<int32_t>::min() + 1, std::numeric_limits<int32_t>::max(),
                 call.priority);
  call.priority = -call.priority;  // vLLM's fields: lower runs first
  fields.string("cache_salt", call.cache_salt, max_name_bytes);
  fields.boolean("return_token_ids", call.token_ids);
  fields.integer("truncate_prompt_tokens", 1, model.max_seq_len, call.keep_prompt_tokens);
  refuse_unsupported(fields);
  ignore_harmless(fields);
}

void read_max_tokens(RequestFields& fields, std::string_view name, int64_t least, CompletionCall& call) {
  int32_t value = -1;
  fields.integer(name, least, std::numeric_limits<int32_t>::max(), value);
  if (value >= 0) call.max_tokens = value;
}

void read_tool_fields(RequestFields& fields, const ModelService& model, CompletionCall& call, OrderedJson& tools) {
  bool parallel = true;
  fields.boolean("parallel_tool_calls", parallel);
  call.one_tool_call = !parallel;
  fields.refuse("functions");
  fields.refuse("function_call");
  const OrderedJson* choice = fields.find("tool_choice");
  if (choice == nullptr) {
    // as "auto" when there are tools
  } else if (*choice == "none") {
    tools = nullptr;
  } else if (*choice == "auto") {
    if (tools.is_null()) fields.fail(bad_field("tool_choice", "\"auto\" needs tools"));
  } else if (*choice == "required" || choice->is_object()) {
    fields.fail(unsupported_field("tool_choice", choice->is_object() ? "of a named function" : "\"required\""));
  } else {
    fields.fail(bad_field("tool_choice", "expected \"none\", \"auto\", \"required\" or a function"));
  }
  if (tools.is_null()) return;
  call.tool_format = model.text->tool_format();
  if (call.tool_format == ToolFormat::none) fields.fail(unsupported_field("tools", "with this model's chat template"));
  if (marked_by_special_tokens(call.tool_format)) call.sampling.skip_special_tokens = false;
}

ParsedCall finish(RequestFields& fields, const RequestLimits& limits, CompletionCall call) {
  if (fields.ok()) {
    if (auto unknown = check_unknown(fields, limits)) return *std::move(unknown);
    return call;
  }
  return *fields.error();
}

void read_prompts(RequestFields& fields, const ModelService& model, const RequestLimits& limits, CompletionCall& call) {
  bool special = true;
  fields.boolean("add_special_tokens", special);
  const OrderedJson* prompt = fields.find("prompt");
  if (!fields.ok()) return;
  if (!prompt) return fields.fail(bad_field("prompt", "missing"));
  const auto add_text = [&](const OrderedJson& text) {
    auto ids = text.get_ref<const std::string&>().empty()
                   ? std::vector<int32_t>()
                   : model.text->encode(text.get_ref<const std::string&>(), special);
    if (ids.empty()) return fields.fail(bad_field("prompt", "empty"));
    call.prompts.push_back(std::move(ids));
  };
  const auto add_ids = [&](const OrderedJson& ids) {
    auto tokens = read_token_ids(fields, ids, "prompt", model.vocab_size);
    if (fields.ok() && tokens.empty()) return fields.fail(bad_field("prompt", "empty"));
    call.prompts.push_back(std::move(tokens));
  };
  if (prompt->is_string()) return add_text(*prompt);
  if (!prompt->is_array()) {
    return fields.fail(bad_field(
        "prompt", fmt::format("expected a string, token ids, or an array of either, got {}", json_kind(*prompt))));
  }
  if (prompt->empty()) return fields.fail(bad_field("prompt", "empty"));
  if (prompt->front().is_number()) return add_ids(*prompt);
  if (prompt->size() > static_cast<size_t>(limits.max_choices)) {
    return fields.fail(
        bad_field("prompt", fmt::format("{} prompts, at most {} are allowed", prompt->size(), limits.max_choices)));
  }
  for (const OrderedJson& entry : *prompt) {
    if (!fields.ok()) return;
    if (entry.is_string() && prompt->front().is_string()) {
      add_text(entry);
    } else if (entry.is_array() && prompt->front().is_array()) {
      add_ids(entry);
    } else {
      return fields.fail(bad_field("prompt", "expected only strings or only arrays of token ids"));
    }
  }
}

}  // namespace

int32_t CompletionCall::tokens_for(size_t prompt) const {
  const auto room = max_seq_len - static_cast<int32_t>(prompts[prompt].size());
  // max_tokens 0 scores the prompt: the engine needs one step for it, whose token is dropped.
  return std::max(1, std::min(max_tokens.value_or(chat ? room : 16), room));
}

std::vector<Request> CompletionCall::requests(const std::string& id) const {
  std::vector<Request> out;
  for (size_t p = 0; p < prompts.size(); ++p) {
    for (int32_t j = 0; j < best_of; ++j) {
      Request request{.id = fmt::format("{}-{}", id, out.size()),
                      .prompt = prompts[p],
                      .sampling = sampling,
                      .priority = priority,
                      .cache_salt = cache_salt};
      request.sampling.max_tokens = tokens_for(p);
      request.sampling.min_tokens = std::min(sampling.min_tokens, request.sampling.max_tokens);
      if (sampling.seed) request.sampling.seed = *sampling.seed + static_cast<uint64_t>(j);  // else all n were the same
      out.push_back(std::move(request));
    }
  }
  return out;
}

std::optional<ApiError> check_unknown(const RequestFields& fields, const RequestLimits& limits) {
  if (!limits.strict_fields) return {};
  const std::string name = fields.first_unknown();
  if (name.empty()) return {};
  return bad_field(name.substr(0, max_name_bytes), "unknown field");
}

void read_model(RequestFields& fields, const ModelService& model) {
  std::string name;
  fields.string("model", name, max_name_bytes);
  if (name.empty() || name == model.name) return;
  fields.fail({.status = 404,
               .message = fmt::format("the model '{}' does not exist: this server has '{}'", name, model.name),
               .param = "model",
               .code = "model_not_found"});
}

std::vector<int32_t> read_token_ids(RequestFields& fields, const OrderedJson& array, std::string_view param,
                                    int32_t vocab_size) {
  std::vector<int32_t> out;
  if (!array.is_array()) {
    fields.fail(bad_field(param, fmt::format("expected an array of token ids, got {}", json_kind(array))));
    return out;
  }
  out.reserve(array.size());
  for (const OrderedJson& id : array) {
    const bool fits =
        id.is_number_integer() && (id.is_number_unsigned() ? id.get<uint64_t>() < static_cast<uint64_t>(vocab_size)
                                                           : id.get<int64_t>() >= 0 && id.get<int64_t>() < vocab_size);
    if (!fits) {
      fields.fail(bad_field(param, fmt::format("an entry is not a token id from 0 to {}", vocab_size - 1)));
      return {};
    }
    out.push_back(id.get<int32_t>());
  }
  return out;
}

ParsedCall parse_chat_call(const OrderedJson& body, const ModelService& model, const RequestLimits& limits) {
  if (!body.is_object()) return ApiError{.message = "the request body is not a JSON object"};
  RequestFields fields(body);
  CompletionCall call{.chat = true};
  read_common(fields, model, call);
  const OrderedJson messages = read_messages(fields, limits);
  OrderedJson tools = read_tools(fields);
  read_tool_fields(fields, model, call, tools);
  const OrderedJson extra = read_template_arguments(fields);
  bool add_generation_prompt = true, special = false;
  fields.boolean("add_generation_prompt", add_generation_prompt);
  fields.boolean("add_special_tokens", special);
  fields.boolean("include_reasoning", call.show_reasoning);
  fields.refuse("echo", false);
  fields.refuse("audio");
  fields.refuse("web_search_options");
  fields.refuse("modalities", OrderedJson::array({"text"}));

  read_max_tokens(fields, "max_tokens", 1, call);
  read_max_tokens(fields, "max_completion_tokens", 1, call);
  int32_t top = 0;
  fields.boolean("logprobs", call.logprobs);
  fields.integer("top_logprobs", 0, 20, top);
  if (top > 0 && !call.logprobs) fields.fail(bad_field("top_logprobs", "needs \"logprobs\": true"));
  if (call.logprobs) call.sampling.logprobs = top;

  if (fields.ok() && !model.text->has_chat_template()) {
    fields.fail({.message = "this model has no chat template: use /v1/completions", .code = "no_chat_template"});
  }
  if (!fields.ok()) return *fields.error();
  auto text = model.text->render(messages, tools, add_generation_prompt, extra);
  if (!text) return ApiError{.message = text.error().message, .param = "messages", .code = "template_error"};
  call.reasoning = model.text->writes_reasoning();
  call.reasoning_open = call.reasoning && ReasoningParser::open_after(*text);
  call.prompts.push_back(model.text->encode(*text, special));
  if (call.prompts[0].empty()) fields.fail(bad_field("messages", "the chat template makes an empty prompt of them"));
  read_choices(fields, limits, call);
  check_context(fields, model, call);
  return finish(fields, limits, std::move(call));
}

ParsedCall parse_completion_call(const OrderedJson& body, const ModelService& model, const RequestLimits& limits) {
  if (!body.is_object()) return ApiError{.message = "the request body is not a JSON object"};
  RequestFields fields(body);
  CompletionCall call;
  read_common(fields, model, call);
  fields.refuse("suffix", "");
  fields.boolean("echo", call.echo);
  read_max_tokens(fields, "max_tokens", call.echo ? 0 : 1, call);  // 0: score the prompt
  int32_t top = -1;
  fields.integer("logprobs", 0, 20, top);
  call.logprobs = top >= 0;
  call.sampling.logprobs = top;
  if (call.echo && call.logprobs) call.sampling.prompt_logprobs = top;
  read_prompts(fields, model, limits, call);
  read_choices(fields, limits, call);
  if (call.best_of > call.n) call.sampling.logprobs = std::max(call.sampling.logprobs, 0);  // to rank them
  check_context(fields, model, call);
  return finish(fields, limits, std::move(call));
}

}  // namespace pinion
