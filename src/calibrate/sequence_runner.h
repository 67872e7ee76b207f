// Runs whole texts through an executor, one after the other, in pieces that fit its limits: what calibration and
// evaluation share.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "runtime/executor.h"

namespace pinion {

class SequenceRunner {  // borrows the executor
 public:
  explicit SequenceRunner(Executor& executor) : executor_(&executor) {}

  // The sequence's tokens are in the vocabulary, and fit max_seq_len and the KV cache.
  Status check(std::span<const int32_t> ids) const;
  // Tokens in a piece: all of whose logits one step can give.
  int32_t piece() const;
  // Logits [count, vocab] of the tokens [at, at + count) of `ids`, whose earlier tokens ran before. Valid until the
  // next call. at = 0 begins a sequence. count is at most piece().
  std::span<const float> run(std::span<const int32_t> ids, int32_t at, int32_t count);

 private:
  Executor* executor_;
};

}  // namespace pinion
