// Decode steps recorded at load. A step of a few tokens launches some hundred kernels of a few microseconds each:
// issued one by one they would wait for the host; replayed they follow one another. Sizes are close where a wasted row
// costs most, in the small; past the last one steps are launched kernel by kernel. Steps of few sequences are recorded
// for short contexts too, where latency counts and kernels may divide their work otherwise.
#include <algorithm>

#include "runtime/engine_executor.h"

namespace pinion {
namespace {

// 1, 2, 4, 8, then steps of an eighth of the power of two below, at least 8: at most 12 % of the rows are padding.
std::vector<int32_t> recorded_sizes(int32_t most) {
  std::vector<int32_t> sizes;
  for (int32_t n = 1; n < most; n = n < 8 ? 2 * n : n + std::max(8, n / 64 * 8)) sizes.push_back(n);
  sizes.push_back(most);
  return sizes;
}

constexpr int32_t kMostRecorded = 512;
constexpr int32_t kFewSequences = 4, kShortContext = 2048;

}  // namespace

Status EngineExecutor::record_decode_steps() {
  const int32_t most =
      std::min({options_.max_batch_size, options_.max_num_tokens, options_.max_outputs, kMostRecorded});
  for (const int32_t n : recorded_sizes(most)) {
    for (const int32_t context : {kShortContext, options_.max_seq_len}) {
      if (context == kShortContext && (n > kFewSequences || options_.max_seq_len <= kShortContext)) continue;
      const StepSizes sizes{.tokens = n,
                            .seqs = n,
                            .outputs = n,
                            .max_blocks = (context + block_size() - 1) / block_size(),
                            .max_context = context};
      step_->bind({}, sizes);  // padding alone: touches no page
      stream_->upload(step_->upload());
      launch_all();  // what kernels and libraries set up at their first launch is no part of a recording
      if (sampling_ != nullptr) sample();
      stream_->synchronize();
      if (!stream_->begin_recording()) return {};
      stream_->upload(step_->upload());
      launch_all();
      if (sampling_ != nullptr) sample();
      recorded_.push_back({sizes, stream_->end_recording(), launches_});
    }
  }
  stream_->synchronize();
  return {};
}

const EngineExecutor::RecordedStep* EngineExecutor::recorded_step(const Batch& batch) const {
  if (observer_ || editor_ || batch.hidden || recorded_.empty()) return nullptr;
  int32_t context = 0;
  for (const BatchSeq& s : batch.seqs) {
    if (s.tokens.size() != 1 || s.outputs != 1) return nullptr;
    context = std::max(context, s.past + 1);
  }
  const auto it = std::ranges::find_if(recorded_, [&](const RecordedStep& r) {
    return r.sizes.seqs >= std::ssize(batch.seqs) && r.sizes.max_context >= context;
  });
  return it == recorded_.end() ? nullptr : &*it;
}

}  // namespace pinion
