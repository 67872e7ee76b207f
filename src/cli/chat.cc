// pinion chat: a conversation in the terminal. /reset forgets it, /exit or the end of input leaves.
#include <fmt/format.h>

#include <iostream>
#include <memory>

#include "cli/sampling_options.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace {

struct Args {
  ModelArgs model;
  SamplingArgs sampling;
  std::string system;
};

Status run(const Args& a) {
  PINION_TRY(OpenModel m, open_model(a.model, {.max_batch_size = 1, .max_num_tokens = 512}));
  if (!m.tokenizer || !m.chat_template) {
    return fail(Errc::invalid_argument, "the model has no tokenizer or no chat template", a.model.model,
                "use pinion generate --prompt TEXT --raw, or pass --tokenizer DIR");
  }
  const ExecutorOptions& limits = m.executor->options();
  LoopOptions options;
  options.max_batch_size = 1;
  options.max_num_tokens = limits.max_num_tokens;
  options.max_seq_len = limits.max_seq_len;
  EngineLoop loop(*m.executor, m.tokenizer.get(), options);
  const SamplingParams sampling = resolve(a.sampling, default_sampling(m.engine->dir(), true));
  const OrderedJson opening =
      a.system.empty() ? OrderedJson::array() : OrderedJson::array({{{"role", "system"}, {"content", a.system}}});
  OrderedJson messages = opening;
  std::string line;
  for (;;) {
    fmt::print(stderr, "> ");
    if (!std::getline(std::cin, line) || line == "/exit") break;
    if (line == "/reset") {
      messages = opening;
      continue;
    }
    if (line.empty()) continue;
    messages.push_back({{"role", "user"}, {"content", line}});
    PINION_TRY(std::vector<int32_t> ids, message_ids(m, messages));
    const int64_t room = limits.max_seq_len - std::ssize(ids);
    if (room < 1) {
      fmt::print(stderr, "the conversation fills the context of {} tokens: /reset starts a new one\n",
                 limits.max_seq_len);
      messages.erase(messages.size() - 1);
      continue;
    }
    Request request{.id = "chat", .prompt = std::move(ids), .sampling = sampling};
    request.sampling.max_tokens = static_cast<int32_t>(std::min<int64_t>(room, request.sampling.max_tokens));
    PINION_TRY(Completion c, complete(loop, std::move(request), [](const OutputPiece& piece) {
                 std::fwrite(piece.text.data(), 1, piece.text.size(), stdout);
                 std::fflush(stdout);
               }));
    fmt::print("\n");
    messages.push_back({{"role", "assistant"}, {"content", c.text}});
  }
  return {};
}

}  // namespace

Verb add_chat(CLI::App& app) {
  auto a = std::make_shared<Args>();
  add_model_options(app, a->model);
  add_sampling_options(app, a->sampling);
  app.add_option("--system", a->system, "a system message to begin with");
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
