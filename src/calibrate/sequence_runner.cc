#include "calibrate/sequence_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace pinion {

Status SequenceRunner::check(std::span<const int32_t> ids) const {
  const auto bad = std::ranges::find_if(ids, [&](int32_t id) { return id < 0 || id >= executor_->vocab_size(); });
  if (bad != ids.end()) {
    return fail(Errc::invalid_argument,
                fmt::format("token {} is outside the vocabulary of {}", *bad, executor_->vocab_size()), {},
                "the tokenizer does not belong to the model");
  }
  const int64_t n = std::ssize(ids);
  if (n > executor_->options().max_seq_len) {
    return fail(Errc::invalid_argument,
                fmt::format("has {} tokens, the limit is {}", n, executor_->options().max_seq_len), {},
                "raise --max_seq_len, or shorten it");
  }
  const int64_t blocks = (n + executor_->block_size() - 1) / executor_->block_size();
  if (blocks * std::ssize(executor_->kv_groups()) > executor_->options().num_blocks) {
    return fail(Errc::exhausted, fmt::format("the KV cache is too small for {} tokens", n), {},
                "raise --kv_cache_free_memory_fraction");
  }
  return {};
}

int32_t SequenceRunner::piece() const {
  const ExecutorOptions& o = executor_->options();
  return std::max(1, std::min(o.max_num_tokens, o.max_outputs > 0 ? o.max_outputs : o.max_batch_size));
}

std::span<const float> SequenceRunner::run(std::span<const int32_t> ids, int32_t at, int32_t count) {
  const int32_t per_group =
      static_cast<int32_t>((std::ssize(ids) + executor_->block_size() - 1) / executor_->block_size());
  std::vector<std::vector<int32_t>> tables(executor_->kv_groups().size(), std::vector<int32_t>(per_group));
  int32_t next = 0;
  BatchSeq s{.tokens = ids.subspan(at, count),
             .past = at,
             .rope_length = static_cast<int32_t>(ids.size()),
             .blocks = {},
             .outputs = count};
  for (auto& t : tables) {
    std::iota(t.begin(), t.end(), next);
    next += per_group;
    s.blocks.emplace_back(t);
  }
  return executor_->forward({{s}});
}

}  // namespace pinion
