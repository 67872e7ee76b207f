#include "runtime/device_draws.h"

#include <algorithm>
#include <limits>

namespace pinion {
namespace {

constexpr int32_t kHistoryStep = 256;  // entries that a history grows by at least
constexpr float kImpossible = -std::numeric_limits<float>::infinity();

// The last token of a word whose other tokens are the sequence's last, as far as they are known: where the very last
// one is not, the device compares it.
void add_bad_words(const Sequence& seq, std::vector<LogitEdit>& edits) {
  for (const auto& word : seq.request.sampling.bad_words) {
    const auto before = std::ssize(word) - 1;
    if (before > seq.length()) continue;
    const auto known = std::max<int64_t>(0, before - seq.unknown);
    if (!std::equal(word.begin(), word.begin() + known, seq.tokens.end() - before)) continue;
    edits.push_back({.token = word.back(), .after = known < before ? word[known] : -1, .bias = kImpossible});
  }
}

// Sees to it that the device has the sequence's history, with room for the token to be drawn. It grows by doubling:
// most sequences end long before max_len, and room for that would keep others out.
bool prepare_history(Sequence& seq, int32_t position, const Executor& executor, HistoryRoom& room, DeviceDraws& draws) {
  const int32_t most = std::min(seq.max_len, executor.vocab_size());
  const bool fits = std::min(seq.history_entries + 1, most) < seq.history_range.size();
  if (fits && seq.counted == position) return true;
  if (seq.unknown > 0) return false;
  const auto& counts = seq.whole_history().counts();
  seq.history_entries = static_cast<int32_t>(counts.size());
  seq.counted = -1;  // until a step is issued with it
  seq.history_range = {};
  seq.history_range = room.take(1 + std::min(most, seq.history_entries + std::max(seq.history_entries, kHistoryStep)));
  if (seq.history_range.size() == 0) return false;
  HistoryWrite& write = draws.histories.emplace_back(HistoryWrite{.at = seq.history_range.begin(), .counts = {}});
  write.counts.reserve(1 + counts.size());
  write.counts.push_back({seq.history_entries, seq.history_range.size() - 1});
  for (const auto& [token, count] : counts) write.counts.push_back({token, count});
  return true;
}

}  // namespace

std::optional<DeviceDraws> device_draws(const Plan& plan, const Executor& executor, HistoryRoom& room) {
  if (!executor.samples()) return std::nullopt;
  DeviceDraws draws;
  draws.rows.reserve(plan.items.size());
  for (const PlanItem& item : plan.items) {
    Sequence& seq = *item.seq;
    if (item.outputs == 0) continue;
    if (item.outputs != 1 || seq.pools() || seq.wants_prompt_rows() || item.past + item.tokens != seq.length()) {
      return std::nullopt;
    }
    const SamplingParams& p = seq.request.sampling;
    const int32_t position = seq.length() - seq.prompt_len;  // of the token in the output
    RowSampling& row = draws.rows.emplace_back(RowSampling{.temperature = p.temperature,
                                                           .top_p = p.top_p,
                                                           .min_p = p.min_p,
                                                           .top_k = p.top_k,
                                                           .uniform = Sampler::uniform(seq.sampler.seed, position),
                                                           .edits = static_cast<int32_t>(draws.edits.size()),
                                                           .logprobs = p.logprobs});
    if (!p.bad_words.empty()) {
      add_bad_words(seq, draws.edits);
      if (seq.unknown > 0) row.earlier_row = seq.row;
    }
    if (position < p.min_tokens) {
      for (const int32_t id : seq.sampler.ending) draws.edits.push_back({.token = id, .bias = kImpossible});
    }
    row.masks = static_cast<int32_t>(draws.edits.size()) - row.edits;
    for (const auto& [id, bias] : seq.sampler.biases) draws.edits.push_back({.token = id, .bias = bias});
    row.biases = static_cast<int32_t>(draws.edits.size()) - row.edits - row.masks;
    if (draws.edits.size() > static_cast<size_t>(executor.sampling_room().edits)) return std::nullopt;
    if (p.penalizes()) {
      if (!prepare_history(seq, position, executor, room, draws)) return std::nullopt;
      row.history = seq.history_range.begin();
      row.repetition_penalty = p.repetition_penalty;
      row.presence_penalty = p.presence_penalty;
      row.frequency_penalty = p.frequency_penalty;
    }
  }
  return draws;
}

}  // namespace pinion
