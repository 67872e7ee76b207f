#include "cli/sampling_options.h"

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace pinion::cli {

void add_draw_options(CLI::App& app, SamplingArgs& a) {
  SamplingParams& p = a.params;
  app.add_option("--temperature", a.temperature, "0: greedy")->check(CLI::Range(0.0, 100.0));
  app.add_option("--top_k", a.top_k, "0: off")->check(CLI::Range(0, 1 << 30));
  app.add_option("--top_p", a.top_p, "1: off")->check(CLI::Range(0.0, 1.0));
  app.add_option("--min_p", p.min_p, "0: off")->check(CLI::Range(0.0, 1.0));
  app.add_option("--repetition_penalty", p.repetition_penalty, "1: off")->check(CLI::Range(0.01, 100.0));
  app.add_option("--presence_penalty", p.presence_penalty, "0: off")->check(CLI::Range(-2.0, 2.0));
  app.add_option("--frequency_penalty", p.frequency_penalty, "0: off")->check(CLI::Range(-2.0, 2.0));
  app.add_option("--logprobs", p.logprobs, "log-probabilities of the k best tokens; generate prints them with --json")
      ->check(CLI::Range(0, 1024));
}

void add_sampling_options(CLI::App& app, SamplingArgs& a) {
  SamplingParams& p = a.params;
  app.add_option("--max_tokens,--max_output_len,--max_new_tokens", a.max_tokens, "tokens to generate at most")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option("--min_tokens", p.min_tokens, "tokens before an end is allowed")->check(CLI::Range(0, 1 << 30));
  add_draw_options(app, a);
  app.add_option("--seed", a.seed, "the same seed gives the same tokens");
  app.add_option("--stop", p.stop, "a text that ends the output (repeatable)");
  app.add_option("--stop_token_ids", p.stop_token_ids, "token ids that end the output")->delimiter(',');
  app.add_flag("--ignore_eos", p.ignore_eos, "go on past the model's end of text");
}

SamplingParams resolve(const SamplingArgs& a, const SamplingParams& defaults) {
  SamplingParams p = a.params;
  p.temperature = a.temperature.value_or(defaults.temperature);
  p.top_k = a.top_k.value_or(defaults.top_k);
  p.top_p = a.top_p.value_or(defaults.top_p);
  p.max_tokens = a.max_tokens.value_or(256);
  p.seed = a.seed;
  return p;
}

Result<Completion> complete(EngineLoop& loop, Request request,
                            const std::function<void(const OutputPiece&)>& on_piece) {
  std::mutex mutex;
  std::condition_variable done;
  Completion c;
  bool finished = false;
  const auto start = std::chrono::steady_clock::now();
  auto elapsed = [start] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  auto ticket = loop.submit(std::move(request), [&](OutputPiece piece) {
    std::lock_guard lock(mutex);
    if (c.tokens.empty() && !piece.tokens.empty()) c.first_token_seconds = elapsed();
    c.tokens.insert(c.tokens.end(), piece.tokens.begin(), piece.tokens.end());
    c.text += piece.text;
    if (on_piece) on_piece(piece);
    if (piece.finish == FinishReason::none) return;
    c.seconds = elapsed();
    c.last = std::move(piece);
    finished = true;
    done.notify_one();
  });
  if (!ticket) return std::move(ticket).error();
  std::unique_lock lock(mutex);
  done.wait(lock, [&] { return finished; });
  if (c.last.finish == FinishReason::error) return c.last.error.value_or(fail(Errc::internal, "the request failed"));
  return c;
}

Result<std::vector<int32_t>> message_ids(const OpenModel& m, const OrderedJson& messages) {
  ChatInput input;
  input.messages = messages;
  PINION_TRY(std::string text, m.chat_template->render(input));
  return m.tokenizer->encode(text, false);
}

Result<std::vector<int32_t>> prompt_ids(const OpenModel& m, const std::string& prompt, bool raw) {
  if (!m.tokenizer) {
    return fail(Errc::invalid_argument, "the model has no tokenizer files", "--prompt",
                "pass ids with --input_ids, or files with --tokenizer DIR");
  }
  if (raw || !m.chat_template) return m.tokenizer->encode(prompt, true);
  return message_ids(m, OrderedJson::array({{{"role", "user"}, {"content", prompt}}}));
}

}  // namespace pinion::cli
