// pinion render: the text that the chat template makes of messages, nothing added.
#include <fmt/format.h>

#include <memory>

#include "base/file.h"
#include "checkpoint/hf_cache.h"
#include "cli/verbs.h"
#include "text/chat_template.h"

namespace pinion::cli {
namespace {

struct Args {
  std::string model, tokenizer, messages, tools, chat_template, kwargs;
  bool no_generation_prompt = false;
};

// The template's own errors say what and where; what to do is for the caller to know.
Error with_remedy(Error error) {
  if (error.message.find(" — ") == std::string::npos) error.message += " — correct the template, or the messages";
  return error;
}

Status run(const Args& a) {
  PINION_TRY(std::filesystem::path dir, resolve_model(a.tokenizer.empty() ? a.model : a.tokenizer));
  PINION_TRY(std::optional<ChatTemplate> found, ChatTemplate::load(dir));
  if (!a.chat_template.empty()) {
    PINION_TRY(std::string source, read_file(a.chat_template, 16 << 20));
    auto given = ChatTemplate::parse(std::move(source));
    if (!given) return with_remedy(std::move(given).error());
    found = *std::move(given);
  }
  if (!found)
    return fail(Errc::not_found, "the model has no chat template", dir.string(),
                "pass one with --chat_template FILE.jinja");
  ChatInput input;
  PINION_TRY(input.messages, read_ordered_json_file(a.messages));
  if (!a.tools.empty()) {
    PINION_TRY(input.tools, read_ordered_json_file(a.tools));
  }
  if (!a.kwargs.empty()) {
    PINION_TRY(input.extra, parse_ordered_json(a.kwargs, "--template_kwargs"));
    if (!input.extra.is_object())
      return fail(Errc::invalid_argument, "must be a JSON object", "--template_kwargs",
                  "write it as {\"name\": value}");
  }
  input.add_generation_prompt = !a.no_generation_prompt;
  if (!input.messages.is_array())
    return fail(Errc::invalid_argument, "must be a list", a.messages, "write it as [{\"role\":…, \"content\":…}, …]");
  for (size_t i = 0; i < input.messages.size(); ++i) {
    if (!input.messages[i].is_object())
      return fail(Errc::invalid_argument, fmt::format("message {} is not an object", i), a.messages,
                  "write it as {\"role\":…, \"content\":…}");
  }
  const auto text = found->render(input);
  if (!text) return with_remedy(text.error());
  std::fwrite(text->data(), 1, text->size(), stdout);
  return {};
}

}  // namespace

Verb add_render(CLI::App& app) {
  auto a = std::make_shared<Args>();
  app.add_option("model", a->model, "a directory with tokenizer files")->required();
  app.add_option("--tokenizer", a->tokenizer, "directory of the tokenizer files, when not the model's");
  app.add_option("--messages", a->messages, "a JSON file: a list of {role, content}")->required();
  app.add_option("--tools", a->tools, "a JSON file: a list of tools");
  app.add_flag("--no_generation_prompt", a->no_generation_prompt, "do not open the assistant's turn");
  app.add_option("--chat_template", a->chat_template, "a template file in place of the model's");
  app.add_option("--template_kwargs", a->kwargs, "a JSON object of further variables");
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
