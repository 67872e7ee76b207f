#include "runtime/step_data.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "graph/rope_spec.h"

namespace pinion {
namespace {

constexpr size_t kAlign = 64;
constexpr int32_t kRopeStep = 256;  // positions that the table of rotations grows by

size_t align(size_t n) {
  return (n + kAlign - 1) / kAlign * kAlign;
}

void rotation(const RopeFrequencies& f, int32_t position, float* cos, float* sin) {
  for (size_t j = 0; j < f.inverse.size(); ++j) {
    const float angle = static_cast<float>(position) * f.inverse[j];
    cos[j] = std::cos(angle) * f.attention_factor;
    sin[j] = std::sin(angle) * f.attention_factor;
  }
}

}  // namespace

size_t StepData::bytes(const Graph& graph, size_t groups, const StepSizes& s) {
  size_t total = 4 * align(s.tokens * sizeof(int32_t)) + align(s.outputs * sizeof(RowSampling)) +
                 align(s.outputs * sizeof(uint64_t)) + align(s.outputs * sizeof(int32_t)) + align(sizeof(int32_t)) +
                 align((s.seqs + 1) * sizeof(int32_t)) + align(s.seqs * sizeof(int32_t)) +
                 align(s.outputs * sizeof(int32_t));
  total += groups * align(static_cast<size_t>(s.seqs) * s.max_blocks * sizeof(int32_t));
  for (const RopeSpec& r : graph.ropes) {
    total += 2 * align(static_cast<size_t>(s.tokens) * (r.rotary_dim / 2) * sizeof(float));
  }
  return total;
}

Result<std::unique_ptr<StepData>> StepData::create(const Graph& graph, std::span<const KvView> views,
                                                   std::span<const int32_t> group_of_layer, size_t groups,
                                                   int32_t block_size, const ExecutorOptions& limits, Device& device) {
  auto data = std::unique_ptr<StepData>(new StepData(graph, limits, block_size));
  const StepSizes most{.tokens = limits.max_num_tokens,
                       .seqs = limits.max_batch_size,
                       .outputs = limits.max_outputs,
                       .max_blocks = (limits.max_seq_len + block_size - 1) / block_size};
  const size_t n = bytes(graph, groups, most) + align(most_edits(limits) * sizeof(LogitEdit));
  PINION_TRY(data->host_[0], device.allocate_pinned(n));
  if (!device.host_visible()) {
    PINION_TRY(data->host_[1], device.allocate_pinned(n));
    PINION_TRY(data->device_, device.allocate(n));
  }
  data->kv_views_.assign(views.begin(), views.end());
  data->group_of_layer_.assign(group_of_layer.begin(), group_of_layer.end());
  data->tables_.resize(groups), data->device_tables_.resize(groups);
  data->cos_.resize(graph.ropes.size()), data->sin_.resize(graph.ropes.size());
  data->rope_rows_.resize(graph.ropes.size()), data->rope_views_.resize(graph.ropes.size());
  for (size_t r = 0; r < graph.ropes.size(); ++r) {  // address space only: touched as far as contexts reach
    data->rope_rows_[r].rows.reserve(static_cast<size_t>(graph.ropes[r].rotary_dim) * (limits.max_seq_len + kRopeStep));
  }
  return data;
}

StepSizes StepData::sizes(const Batch& batch) const {
  StepSizes s{.seqs = static_cast<int32_t>(batch.seqs.size())};
  for (const BatchSeq& seq : batch.seqs) {
    const auto n = static_cast<int32_t>(seq.tokens.size());
    s.tokens += n;
    s.outputs += seq.outputs;
    s.max_context = std::max(s.max_context, seq.past + n);
  }
  s.max_blocks = (s.max_context + block_size_ - 1) / block_size_;
  return s;
}

void StepData::lay_out(const StepSizes& s, size_t edits) {
  size_t at = 0;
  std::byte* const host = host_[slot_]->data();
  const ptrdiff_t to_device = device_ ? device_->data() - host : 0;
  const auto take = [&]<class T>(T*& on_host, size_t n) {
    check(at + n * sizeof(T) <= host_[slot_]->size(), "the step is larger than its block");
    on_host = reinterpret_cast<T*>(host + at);
    at += align(n * sizeof(T));
    return reinterpret_cast<T*>(reinterpret_cast<std::byte*>(on_host) + to_device);
  };
  view_ = {.tokens = s.tokens, .seqs = s.seqs, .outputs = s.outputs, .max_context = s.max_context};
  view_.token_ids = take(token_ids_, s.tokens);
  view_.positions = take(positions_, s.tokens);
  view_.row_seq = take(row_seq_, s.tokens);
  view_.seq_start = take(seq_start_, s.seqs + 1);
  view_.context_len = take(context_len_, s.seqs);
  view_.output_rows = take(output_rows_, s.outputs);
  if (device_) {
    int32_t* slot = nullptr;
    device_slot_ = take(slot, 1);
    *slot = slot_;
    device_sampling_ = take(sampling_, s.outputs);
    largest_.found = take(found_, s.outputs);
    largest_.stored = take(stored_, s.outputs);
    view_.earlier_row = take(earlier_row_, s.tokens);
    view_.earlier_tokens = earlier_tokens_;
    std::fill_n(earlier_row_, s.tokens, -1);
  }
  for (size_t g = 0; g < tables_.size(); ++g) {
    device_tables_[g] = take(tables_[g], static_cast<size_t>(s.seqs) * s.max_blocks);
  }
  for (size_t r = 0; r < graph_.ropes.size(); ++r) {
    const size_t n = static_cast<size_t>(s.tokens) * (graph_.ropes[r].rotary_dim / 2);
    rope_views_[r].cos = take(cos_[r], n);
    rope_views_[r].sin = take(sin_[r], n);
  }
  for (size_t l = 0; l < kv_views_.size(); ++l) {
    kv_views_[l].block_table = device_tables_[group_of_layer_[l]];
    kv_views_[l].max_blocks = s.max_blocks;
  }
  if (device_) device_edits_ = take(edits_, edits);  // last: their number is no part of the layout
  view_.rope = rope_views_;
  view_.kv = kv_views_;
  used_ = at;
}

void StepData::bind(const Batch& batch, const StepSizes& sizes, const StepSampling& sampling, bool keep_logits) {
  const StepSizes own = this->sizes(batch);
  check(own.tokens <= sizes.tokens && own.seqs <= sizes.seqs && own.outputs <= sizes.outputs &&
            own.max_blocks <= sizes.max_blocks && own.max_context <= sizes.max_context,
        "the batch is larger than the sizes it is padded to");
  check(sizes.tokens <= limits_.max_num_tokens, "the batch has too many tokens");
  check(sizes.seqs >= 1 && sizes.seqs <= limits_.max_batch_size, "the batch has too many sequences");
  check(sizes.outputs <= limits_.max_outputs, "the batch wants too many rows of logits");
  check(own.max_context <= limits_.max_seq_len, "a sequence is longer than the limit");
  if (device_) slot_ ^= 1;
  check(sampling.edits.size() <= static_cast<size_t>(most_edits(limits_)), "the step has too many edits");
  lay_out(sizes, sampling.edits.size());
  if (device_) {
    check(sampling.rows.size() <= static_cast<size_t>(sizes.outputs), "more samplings than rows of logits");
    std::fill(std::ranges::copy(sampling.rows, sampling_).out, sampling_ + sizes.outputs, RowSampling{});
    std::ranges::copy(sampling.edits, edits_);
    std::fill_n(found_, sizes.outputs, 0);
    const bool all = keep_logits || sampling.rows.empty();
    for (int32_t i = 0; i < sizes.outputs; ++i) stored_[i] = all || needs_logits(sampling_[i]) ? 1 : 0;
  }
  int32_t row = 0, output = 0;
  for (int32_t i = 0; i < own.seqs; ++i) {
    const BatchSeq& seq = batch.seqs[i];
    const auto n = static_cast<int32_t>(seq.tokens.size());
    check(n >= 1, "a sequence of the batch has no tokens");
    check(seq.outputs >= 0 && seq.outputs <= n, "a sequence wants more rows of logits than it has tokens");
    check(seq.blocks.size() == tables_.size(), "a sequence needs a block table per KV group");
    view_.max_seq_tokens = std::max(view_.max_seq_tokens, n);
    fill_sequence(seq, i, row, sizes);
    for (int32_t k = n - seq.outputs; k < n; ++k) output_rows_[output++] = row + k;
    row += n;
  }
  for (int32_t i = own.seqs; i < sizes.seqs; ++i) {  // padding: a row each, as long as there are rows
    seq_start_[i] = row;
    context_len_[i] = 0;
    for (int32_t* table : tables_) std::fill_n(table + static_cast<size_t>(i) * sizes.max_blocks, sizes.max_blocks, -1);
    if (row == sizes.tokens) continue;
    token_ids_[row] = positions_[row] = 0;
    row_seq_[row] = i;
    for (size_t r = 0; r < cos_.size(); ++r) {
      const size_t half = graph_.ropes[r].rotary_dim / 2;
      std::fill_n(cos_[r] + row * half, half, 1.0f), std::fill_n(sin_[r] + row * half, half, 0.0f);
    }
    view_.max_seq_tokens = std::max(view_.max_seq_tokens, 1);
    ++row;
  }
  check(row == sizes.tokens, "rows are left over when a step is padded");
  seq_start_[sizes.seqs] = row;
  while (output < sizes.outputs) output_rows_[output++] = row - 1;
}

void StepData::fill_sequence(const BatchSeq& seq, int32_t index, int32_t row, const StepSizes& sizes) {
  const auto n = static_cast<int32_t>(seq.tokens.size());
  seq_start_[index] = row;
  context_len_[index] = seq.past + n;
  for (size_t g = 0; g < tables_.size(); ++g) {
    check(static_cast<int64_t>(seq.blocks[g].size()) * block_size_ >= seq.past + n, "a block table is too short");
    int32_t* table = tables_[g] + static_cast<size_t>(index) * sizes.max_blocks;
    const auto used = seq.blocks[g].first(std::min<size_t>(seq.blocks[g].size(), sizes.max_blocks));
    std::fill(std::ranges::copy(used, table).out, table + sizes.max_blocks, -1);
  }
  for (int32_t k = 0; k < n; ++k) {
    const bool known = k + 1 < n || seq.earlier_row < 0;
    check(!known || (seq.tokens[k] >= 0 && seq.tokens[k] < graph_.vocab_size), "a token is outside the vocabulary");
    token_ids_[row + k] = known ? seq.tokens[k] : 0;
    positions_[row + k] = seq.past + k;
    row_seq_[row + k] = index;
  }
  if (seq.earlier_row >= 0) {
    check(device_ != nullptr, "only a device with memory of its own knows tokens that the host does not");
    earlier_row_[row + n - 1] = (slot_ ^ 1) * limits_.max_outputs + seq.earlier_row;
  }
  for (size_t r = 0; r < cos_.size(); ++r) fill_rope(r, seq.rope_length, seq.past, n, row);
}

void StepData::fill_rope(size_t r, int32_t rope_length, int32_t past, int32_t n, int32_t row) {
  const RopeSpec& spec = graph_.ropes[r];
  const size_t half = spec.rotary_dim / 2;
  if (half == 0) return;
  float *cos = cos_[r] + row * half, *sin = sin_[r] + row * half;
  RopeRows& cached = rope_rows_[r];
  const uint64_t variant = rope_variant(spec, rope_length);
  if (!cached.known) cached = {true, variant, rope_frequencies(spec, rope_length), {}};
  if (cached.variant != variant) {
    const RopeFrequencies other = rope_frequencies(spec, rope_length);
    for (int32_t k = 0; k < n; ++k) rotation(other, past + k, cos + k * half, sin + k * half);
    return;
  }
  const auto have = static_cast<int32_t>(cached.rows.size() / (2 * half));
  if (past + n > have) {
    const int32_t want = (past + n + kRopeStep - 1) / kRopeStep * kRopeStep;
    cached.rows.resize(2 * half * want);
    for (int32_t p = have; p < want; ++p) {
      float* at = cached.rows.data() + 2 * half * p;
      rotation(cached.frequencies, p, at, at + half);
    }
  }
  for (int32_t k = 0; k < n; ++k) {
    const float* at = cached.rows.data() + 2 * half * (past + k);
    std::memcpy(cos + k * half, at, half * sizeof(float));
    std::memcpy(sin + k * half, at + half, half * sizeof(float));
  }
}

Upload StepData::upload() const {
  if (!device_) return {};
  return {device_->data(), host_[slot_]->data(), used_};
}

}  // namespace pinion
