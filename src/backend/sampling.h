// An optional ability of a device with memory of its own: choosing tokens where the logits lie, so that a step brings
// back a number per row instead of a row. Asked for at load by dynamic_cast of the Device; without it rows are copied
// and the host chooses (runtime/sampler.h).
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "backend/largest_logits.h"

namespace pinion {

// What one row is drawn with. The order of operations is the host sampler's: masks, biases, penalties, then of what
// they left min_p, top_k (exactly k, ties to the lowest ids), top_p, each on what the one before left, then a draw in
// the order of ids. Logprobs are of the row before all of this.
struct RowSampling {
  float temperature = 0;  // 0: the largest logit, ties to the lowest id
  float top_p = 1, min_p = 0;
  int32_t top_k = 0;   // 0: all
  double uniform = 0;  // in [0, 1): where in the cumulative weights the token lies
  // Over the tokens of the history that begins here in SamplingMemory::histories; -1: no penalties. The device counts
  // the token that it chooses.
  int32_t history = -1;
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int32_t edits = 0;              // where the row's begin: first `masks` in any order, then `biases` in order of token,
  int32_t masks = 0, biases = 0;  // those of one token one after another
  int32_t earlier_row = -1;  // the row of the step before that gave the sequence's last token; -1: LogitEdit::after
                             // is not asked for
  int32_t logprobs = -1;     // -1: none; k: the chosen token's and the k best, at most kMaxLogprobs
};

// Whether choosing the row's token takes more of its logits than the largest.
constexpr bool needs_logits(const RowSampling& r) {
  return (r.temperature != 0 && r.top_k != 1) || r.history >= 0 || r.masks + r.biases > 0 || r.logprobs >= 0;
}

// What an edit adds to a token's logit; -inf is a mask.
struct LogitEdit {
  int32_t token = 0;
  int32_t after = -1;  // of a mask: only where the step before chose this token; -1: always
  float bias = 0;
};

// A history: {entries, entries that there is room for}, then as many distinct tokens, each with how often it was put
// out (0: it is the prompt's alone).
struct TokenCount {
  int32_t token = 0, count = 0;
};

// Of a row: {rank of the chosen token, its logprob}, then the best tokens, best first.
struct LogprobEntry {
  int32_t token = 0;
  float logprob = 0;
};

inline constexpr int32_t kMaxLogprobs = 128;

inline constexpr int32_t kNotFinite = -1;  // in place of a token: the row holds a NaN or +inf, or only -inf
inline constexpr int32_t kNoneLeft = -2;   // the row is finite, and its edits and penalties leave no token

// What sampling reads and keeps beside the rows; all of it the device's. Null where no row asks for it.
struct SamplingMemory {
  const LogitEdit* edits = nullptr;
  float* edited = nullptr;  // as many: the logits before
  TokenCount* histories = nullptr;
  float* penalized = nullptr;  // as many
};

// Where row i's token goes: to tokens[at] for the next step and to host[at] for the host, at = *slot * stride + i. The
// steps of a recording write to alternate slots, which the host may then read in its own time.
struct SampledTokens {
  int32_t* tokens = nullptr;         // the device's
  int32_t* host = nullptr;           // pinned; null: the host reads nothing
  LogprobEntry* logprobs = nullptr;  // pinned, 1 + kMaxLogprobs to a row; null: no row asks for them
  const int32_t* slot = nullptr;     // the device's, 0 or 1; null: 0
  int64_t stride = 0;
};

class SamplingDevice {
 public:
  virtual ~SamplingDevice() = default;
  // In stream order: a token from each row of logits [rows, vocab], which are as before when it ends. Pointers to
  // logits and sampling are the device's. `largest`: as launch_head left them, for rows that it did not store; null:
  // all rows are stored.
  virtual void sample_rows(float* logits, const LargestLogits& largest, const RowSampling* sampling,
                           const SamplingMemory& memory, const SampledTokens& to, int64_t rows, int64_t vocab,
                           Stream& stream) = 0;
  // In place of kernel.launch(args, stream), where args.out[0] are the logits: stores the rows that `largest` says, and
  // leaves the largest logit of the others. False: not with this kernel, and nothing was launched.
  virtual bool launch_head(const Kernel& /*kernel*/, const LaunchArgs& /*args*/, const LargestLogits& /*largest*/,
                           Stream& /*stream*/) {
    return false;
  }
};

}  // namespace pinion
