// A request and what comes back: plain data, made by the server or the CLI, read by the engine thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace pinion {

struct SamplingParams {
  float temperature = 1;  // 0: greedy
  int32_t top_k = 0;      // 0: off
  float top_p = 1, min_p = 0;
  float repetition_penalty = 1;                       // over prompt and output (HF)
  float presence_penalty = 0, frequency_penalty = 0;  // over the output (OpenAI)
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<std::vector<int32_t>> bad_words;  // token sequences that must not be completed
  std::optional<uint64_t> seed;                 // unset: drawn from the system once per request
  int32_t max_tokens = 16, min_tokens = 0;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;  // besides the model's own
  std::vector<std::string> stop;        // strings, searched in the output text
  bool include_stop = false;            // keep the stop string in the text
  bool skip_special_tokens = true;      // leave special tokens out of the text
  int32_t logprobs = -1;                // -1: none; k: the chosen token's and the k best
  int32_t prompt_logprobs = -1;

  bool penalizes() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

// A request for one vector in place of tokens: the final hidden states (what the head reads) of the prompt's last
// token, or their mean over the prompt.
enum class Pooling : uint8_t { none, last, mean };

struct Request {
  std::string id;
  std::vector<int32_t> prompt;  // token ids, at least one
  SamplingParams sampling;
  int32_t priority = 0;             // higher runs first; waiting raises it, so that nothing starves
  std::string cache_salt;           // requests share cached prefixes only within one salt
  Pooling pooling = Pooling::none;  // else nothing is generated: its one piece has the embedding, and finish == stop
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
  int32_t rank = 1;
  std::vector<std::pair<int32_t, float>> top;  // best first
};

enum class FinishReason : uint8_t { none, stop, length, cancelled, error };

// One piece of a request's output. Pieces come in order, the last one has finish != none.
struct OutputPiece {
  std::vector<int32_t> tokens;
  std::string text;                           // complete characters only; empty without a tokenizer
  std::vector<TokenLogprob> logprobs;         // one per token when asked for
  std::vector<TokenLogprob> prompt_logprobs;  // in the first piece, when asked for; entry 0 is empty
  std::vector<float> embedding;               // of a request with pooling, not normalised
  FinishReason finish = FinishReason::none;
  std::string stop_reason;  // the stop string or token id that ended it, if one did
  int32_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;  // totals so far
  std::optional<Error> error;                                       // with finish == error
  // In the last piece: how long the request waited, was in prefill and was in decode.
  float queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
};

// Called on the engine thread: must not block. Everything that goes out goes through this.
using OutputSink = std::function<void(OutputPiece)>;

}  // namespace pinion
