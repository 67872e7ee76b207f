// An optional ability of a device with memory of its own: choosing tokens where the logits lie, so that a step brings
// back a number per row instead of a row. Asked for at load by dynamic_cast of the Device; without it rows are copied
// and the host chooses (runtime/sampler.h).
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "backend/largest_logits.h"

namespace pinion {

// What one row is drawn with. The order of operations is the host sampler's: min_p, top_k (exactly k, ties to the
// lowest ids), top_p, each on what the one before left, then a draw in the order of ids.
struct RowSampling {
  float temperature = 0;  // 0: the largest logit, ties to the lowest id
  float top_p = 1, min_p = 0;
  int32_t top_k = 0;   // 0: all
  double uniform = 0;  // in [0, 1): where in the cumulative weights the token lies
};

// Whether choosing the row's token takes more of its logits than the largest.
constexpr bool needs_logits(const RowSampling& r) {
  return r.temperature != 0 && r.top_k != 1;
}

inline constexpr int32_t kNotFinite = -1;  // in place of a token: the row holds a NaN or +inf, or only -inf

// Where row i's token goes: to tokens[i] for the next step, and to host[*slot * stride + i] for the host. The steps of
// a recording write to alternate slots, which the host may then read in its own time.
struct SampledTokens {
  int32_t* tokens = nullptr;      // the device's
  int32_t* host = nullptr;        // pinned; null: the host reads nothing
  const int32_t* slot = nullptr;  // the device's
  int64_t stride = 0;
};

class SamplingDevice {
 public:
  virtual ~SamplingDevice() = default;
  // In stream order: a token from each row of logits [rows, vocab]. Pointers to logits and sampling are the device's.
  // `largest`: as launch_head left them, for rows that it did not store; null: all rows are stored.
  virtual void sample_rows(const float* logits, const LargestLogits& largest, const RowSampling* sampling,
                           const SampledTokens& to, int64_t rows, int64_t vocab, Stream& stream) = 0;
  // In place of kernel.launch(args, stream), where args.out[0] are the logits: stores the rows that `largest` says, and
  // leaves the largest logit of the others. False: not with this kernel, and nothing was launched.
  virtual bool launch_head(const Kernel& /*kernel*/, const LaunchArgs& /*args*/, const LargestLogits& /*largest*/,
                           Stream& /*stream*/) {
    return false;
  }
};

}  // namespace pinion
