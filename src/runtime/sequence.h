// Sequence: a request being worked on. Made by submit(), from then on touched by the engine thread alone.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/block_pool.h"
#include "runtime/history_room.h"
#include "runtime/output_text.h"
#include "runtime/request.h"
#include "runtime/sampler.h"

namespace pinion {

using Clock = std::chrono::steady_clock;  // never the wall clock: it jumps

struct Sequence {
  uint64_t ticket = 0;  // order of submission
  Request request;
  OutputSink sink;

  std::vector<int32_t> tokens;  // prompt and output; the last `unknown` ones are still being computed, and say nothing
  int32_t unknown = 0;          // at most 1 while a step is planned
  int32_t row = 0;              // of the last issued step's outputs: where its last token will come from, if unknown
  int32_t prompt_len = 0;
  int32_t max_len = 0;   // tokens at which it ends
  int32_t computed = 0;  // tokens whose KV is written, or will be by a step that was issued
  int32_t retired = 0;   // of these, by steps that have ended
  KvTable table;
  PrefixRoot root;
  int64_t rank = 0;  // larger runs first; see schedule_rank()
  int32_t preemptions = 0;
  bool admitted_before = false;
  int32_t cached_tokens = 0;     // of the prompt, when first admitted
  int32_t prompt_logprobs = -1;  // as requested; the prompt then needs every row of logits, so no prefix is reused
  int32_t prompt_rows = 0;       // prompt positions whose logits were seen: recomputing does not ask again

  // Empty where nothing is penalised, and behind the output while the device counts: it costs more than the rest of a
  // token.
  TokenHistory history;
  HistoryRoom::Range history_range;  // where the device counts tokens, once it does
  int32_t counted = -1;              // output tokens that it has counted, or will have when the issued steps have run
  int32_t history_entries = 0;       // that it has then at most
  SamplerState sampler;
  std::unique_ptr<OutputText> text;  // null without a tokenizer
  std::vector<TokenLogprob> prompt_entries;
  std::vector<double> pooled;  // the sum of the hidden rows seen so far

  Clock::time_point submitted, admitted, first_token;
  uint64_t last_step = 0;  // that it is part of: it outlives that
  bool ended = false;      // its last piece is out; a step that still runs may hold it

  // Asks for the memory that a step reads, without waiting for it: first its own, then what that points to.
  void prefetch() const {
    for (size_t at = 0; at < sizeof(Sequence); at += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(this) + at, 1);
  }
  void prefetch_parts() const {
    __builtin_prefetch(tokens.data() + tokens.size(), 1);
    for (const auto& group : table.blocks) __builtin_prefetch(group.data());
  }

  int32_t length() const { return static_cast<int32_t>(tokens.size()); }
  int32_t known() const { return length() - unknown; }
  int32_t output_tokens() const { return known() - prompt_len; }
  const TokenHistory& whole_history() {
    if (request.sampling.penalizes()) history.add_outputs(std::span(tokens).subspan(prompt_len, output_tokens()));
    return history;
  }
  bool decoding() const { return length() - computed == 1; }
  bool awaits_end() const { return unknown > 0 && length() >= max_len; }  // the token on its way is its last
  // KV is never written for the last token that it may produce.
  int32_t max_written() const { return std::max(max_len - 1, prompt_len); }
  bool pools() const { return request.pooling != Pooling::none; }
  bool wants_prompt_rows() const {
    if (request.pooling == Pooling::mean) return prompt_rows < prompt_len;
    return prompt_logprobs >= 0 && prompt_rows < prompt_len - 1;
  }
};

}  // namespace pinion
