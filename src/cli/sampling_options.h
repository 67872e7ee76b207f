// Sampling flags, shared by generate, chat and bench, and one run of a request to its end.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "cli/model.h"
#include "runtime/engine_loop.h"

namespace pinion::cli {

struct SamplingArgs {
  SamplingParams params;
  std::optional<float> temperature, top_p;
  std::optional<int32_t> top_k;
  std::optional<int32_t> max_tokens;
  std::optional<uint64_t> seed;
};

void add_draw_options(CLI::App& app, SamplingArgs& args);  // of them those that change how a token is drawn
void add_sampling_options(CLI::App& app, SamplingArgs& args);
SamplingParams resolve(const SamplingArgs& args, const SamplingParams& defaults);

struct Completion {
  std::vector<int32_t> tokens;
  std::string text;
  OutputPiece last;
  double first_token_seconds = 0, seconds = 0;
};

// Submits and waits; `on_text` sees pieces as they come. Errors: the request is refused, or failed.
Result<Completion> complete(EngineLoop& loop, Request request,
                            const std::function<void(const OutputPiece&)>& on_piece = {});

// A user message through the model's template, or the text itself (raw, or no template). Needs a tokenizer.
Result<std::vector<int32_t>> prompt_ids(const OpenModel& model, const std::string& prompt, bool raw);
Result<std::vector<int32_t>> message_ids(const OpenModel& model, const OrderedJson& messages);

}  // namespace pinion::cli
