// pinion generate: one prompt to the terminal as it comes, or a JSONL file of prompts through in-flight batching.
#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "base/file.h"
#include "cli/sampling_options.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace {

struct Args {
  ModelArgs model;
  SamplingArgs sampling;
  std::string prompt, input, input_ids;
  bool raw = false, json = false, no_prefix_reuse = false;
  int32_t chunk_tokens = 0;
};

Json to_json(const Completion& c) {
  static constexpr const char* kNames[] = {"", "stop", "length", "cancelled", "error"};
  return {{"text", c.text},
          {"tokens", c.tokens},
          {"finish_reason", kNames[static_cast<int>(c.last.finish)]},
          {"prompt_tokens", c.last.prompt_tokens},
          {"cached_tokens", c.last.cached_tokens},
          {"time_to_first_token_ms", c.first_token_seconds * 1e3},
          {"seconds", c.seconds}};
}

Status one(const Args& a, const OpenModel& m, EngineLoop& loop, const SamplingParams& sampling) {
  Request request{.id = "generate", .prompt = {}, .sampling = sampling};
  if (!a.input_ids.empty()) {
    PINION_TRY(request.prompt, parse_ids(a.input_ids));
  } else {
    PINION_TRY(request.prompt, prompt_ids(m, a.prompt, a.raw));
  }
  const int64_t room = m.executor->options().max_seq_len - std::ssize(request.prompt);
  if (!a.sampling.max_tokens)
    request.sampling.max_tokens = static_cast<int32_t>(std::clamp<int64_t>(room, 1, request.sampling.max_tokens));
  const bool stream = !a.json && m.tokenizer;
  const int prompt_tokens = static_cast<int>(request.prompt.size());
  PINION_TRY(Completion c, complete(loop, std::move(request), [&](const OutputPiece& piece) {
               if (!stream) return;
               std::fwrite(piece.text.data(), 1, piece.text.size(), stdout);
               std::fflush(stdout);
             }));
  if (a.json) {
    fmt::print("{}\n", to_json(c).dump(-1, ' ', false, Json::error_handler_t::replace));
    return {};
  }
  if (!m.tokenizer) fmt::print("{}", fmt::join(c.tokens, ","));
  fmt::print("\n");
  std::fflush(stdout);
  const double decode = c.seconds - c.first_token_seconds;
  const double rate = c.tokens.size() > 1 && decode > 0 ? (c.tokens.size() - 1) / decode : 0;
  fmt::print(stderr, "[{} prompt tokens, first token after {:.1f} ms, {} tokens{}]\n", prompt_tokens,
             c.first_token_seconds * 1e3, c.tokens.size(), rate > 0 ? fmt::format(", {:.1f} tokens/s", rate) : "");
  return {};
}

// Lines: {"prompt": text} or {"messages": […]} or {"input_ids": […]}; answers come in the lines' order.
Status many(const Args& a, const OpenModel& m, EngineLoop& loop, const SamplingParams& sampling) {
  PINION_TRY(std::string text, read_file(a.input));
  std::vector<Request> requests;
  int64_t number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}, line {}", a.input, number);
    PINION_TRY(OrderedJson json, parse_ordered_json(line, where));
    Request r{.id = fmt::format("line-{}", number), .prompt = {}, .sampling = sampling};
    if (json.is_object() && json.contains("input_ids") && json["input_ids"].is_array()) {
      for (const auto& id : json["input_ids"]) {
        if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
          return fail(Errc::invalid_argument, "\"input_ids\" must be a list of token ids", where,
                      "write ids as [1,2,3]");
        r.prompt.push_back(id.get<int32_t>());
      }
    } else if (json.is_object() && json.contains("messages") && m.tokenizer && m.chat_template) {
      PINION_TRY(r.prompt, message_ids(m, json["messages"]));
    } else if (json.is_object() && json.contains("prompt") && json["prompt"].is_string()) {
      PINION_TRY(r.prompt, prompt_ids(m, json["prompt"].get<std::string>(), a.raw));
    } else {
      return fail(Errc::invalid_argument,
                  "the line needs \"prompt\", \"messages\" (with a chat template) or \"input_ids\"", where,
                  "write a line as {\"prompt\":\"...\"}");
    }
    requests.push_back(std::move(r));
  }
  struct Slot {
    Completion completion;
    bool finished = false;
  };
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Slot> slots(requests.size());
  size_t open = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return open < static_cast<size_t>(loop.options().max_queue); });
      ++open;
    }
    auto ticket = loop.submit(std::move(requests[i]), [&, i](OutputPiece piece) {
      std::lock_guard lock(mutex);
      Slot& s = slots[i];
      s.completion.tokens.insert(s.completion.tokens.end(), piece.tokens.begin(), piece.tokens.end());
      s.completion.text += piece.text;
      if (piece.finish == FinishReason::none) return;
      s.completion.last = std::move(piece);
      s.finished = true;
      --open;
      changed.notify_one();
    });
    if (!ticket) {
      loop.drain();  // the sinks of accepted requests refer to this frame
      return std::move(ticket).error();
    }
  }
  std::unique_lock lock(mutex);
  for (Slot& s : slots) {
    changed.wait(lock, [&] { return s.finished; });
    if (s.completion.last.error) {
      lock.unlock();
      loop.drain();
      return *s.completion.last.error;
    }
    fmt::print("{}\n", to_json(s.completion).dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  lock.unlock();
  loop.drain();
  return {};
}

Status run(const Args& a) {
  const int given = !a.prompt.empty() + !a.input.empty() + !a.input_ids.empty();
  if (given != 1) {
    return fail(Errc::invalid_argument, given ? "more than one prompt is given" : "no prompt is given",
                "pinion generate", "give one of --prompt, --input and --input_ids");
  }
  PINION_TRY(OpenModel m, open_model(a.model, {.max_batch_size = a.input.empty() ? 1 : 16, .max_num_tokens = 512}));
  LoopOptions options;
  const ExecutorOptions& limits = m.executor->options();
  options.max_batch_size = limits.max_batch_size;
  options.max_num_tokens = limits.max_num_tokens;
  options.max_seq_len = limits.max_seq_len;
  if (a.chunk_tokens) options.chunk_tokens = a.chunk_tokens;
  options.prefix_reuse = !a.no_prefix_reuse;
  EngineLoop loop(*m.executor, m.tokenizer.get(), options);
  const SamplingParams sampling = resolve(a.sampling, default_sampling(m.engine->dir(), true));
  return a.input.empty() ? one(a, m, loop, sampling) : many(a, m, loop, sampling);
}

}  // namespace

Verb add_generate(CLI::App& app) {
  auto a = std::make_shared<Args>();
  add_model_options(app, a->model);
  add_sampling_options(app, a->sampling);
  app.add_option("--prompt", a->prompt, "a user message where the model has a chat template, else the text itself");
  app.add_flag("--raw", a->raw, "the prompt is the text itself, without a chat template");
  app.add_option("--input", a->input,
                 "a JSONL file of {\"prompt\"}, {\"messages\"} or {\"input_ids\"}; prints a JSON line each");
  app.add_option("--input_ids", a->input_ids, "token ids, 1,2,3");
  app.add_option("--chunk_tokens", a->chunk_tokens, "largest piece of a prompt in one step")
      ->check(CLI::Range(1, 1 << 20));
  app.add_flag("--no_prefix_reuse", a->no_prefix_reuse,
               "do not share the cache between prompts with a common beginning");
  app.add_flag("--json", a->json, "print one JSON object: text, tokens, finish_reason, times");
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
