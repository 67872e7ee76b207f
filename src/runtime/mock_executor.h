// A deterministic model for tests: what it writes for a token depends on the token, its position, the rope variant and
// everything visible before it, and its logits are a hash over all KV entries it can see, read through the block
// tables. A wrong table, a stale or shared block or a wrong position gives other tokens.
#pragma once

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/check.h"
#include "runtime/executor.h"
#include "runtime/sampler.h"

namespace pinion {

struct MockConfig {
  int32_t vocab = 24, context = 512, block_size = 4;
  std::vector<int32_t> windows = {0};
  ExecutorOptions options{.num_blocks = 64, .max_batch_size = 8, .max_num_tokens = 32};
  std::vector<int32_t> eos = {};
  int32_t long_prompt = 40;  // prompts of this length and more use rope variant 1
};

class MockExecutor : public Executor {
 public:
  explicit MockExecutor(MockConfig config) : config_(std::move(config)) {
    for (const int32_t window : config_.windows) groups_.push_back({.window = window, .layers = 1, .block_bytes = 64});
    kv_.resize(static_cast<size_t>(config_.options.num_blocks) * config_.block_size);
    host_.resize(static_cast<size_t>(config_.options.host_blocks) * config_.block_size);
  }
  int32_t vocab_size() const override { return config_.vocab; }
  int32_t context_length() const override { return config_.context; }
  int32_t block_size() const override { return config_.block_size; }
  std::span<const KvGroupInfo> kv_groups() const override { return groups_; }
  const ExecutorOptions& options() const override { return config_.options; }
  std::span<const int32_t> eos_token_ids() const override { return config_.eos; }
  uint64_t rope_variant(int32_t prompt_length) const override { return prompt_length >= config_.long_prompt; }
  void copy_block(int32_t, int32_t) override { throw std::logic_error("not used"); }

  // As late as may be, or after a number of steps that varies: whoever relies on a copy that is not awaited reads what
  // was there before.
  void move_blocks(std::span<const BlockCopy> copies, bool awaited) override {
    if (moving) moving();
    for (const BlockCopy& c : copies) {
      check(c.block >= 0 && c.block < config_.options.num_blocks && c.slot >= 0 && c.slot < config_.options.host_blocks,
            "a copy outside of pool or slots");
      copies_.push_back(c);
    }
    most_under_way = std::max(most_under_way, copies_.size());
    if (awaited && !planted_unawaited) run_copies(copies_.size());
  }
  std::function<void()> moving;    // called before each move_blocks; may throw
  bool planted_unawaited = false;  // the fault that tests must notice
  size_t most_under_way = 0;

  // Called before each forward; may throw. Called on each row of logits with its sequence's first new token.
  std::function<void(const Batch&)> before;
  std::function<void(const BatchSeq&, std::span<float>)> change;

  std::span<const float> forward(const Batch& batch) override {
    if (before) before(batch);
    if (++forwards_ % 3 == 0) run_copies(forwards_ % 4);
    check(batch.seqs.size() <= static_cast<size_t>(config_.options.max_batch_size), "batch too large");
    size_t tokens = 0, rows = 0;
    for (const BatchSeq& s : batch.seqs) tokens += s.tokens.size(), rows += s.outputs;
    check(tokens <= static_cast<size_t>(config_.options.max_num_tokens), "too many tokens");
    const int32_t most = config_.options.max_outputs;
    check(rows <= static_cast<size_t>(most ? most : config_.options.max_batch_size), "too many rows");
    logits_.clear();
    for (const BatchSeq& s : batch.seqs) {
      check(s.blocks.size() == groups_.size() && !s.tokens.empty(), "malformed sequence");
      for (size_t i = 0; i < s.tokens.size(); ++i) {
        const uint64_t seen = token(s, static_cast<int32_t>(i));
        if (i + s.outputs < s.tokens.size()) continue;
        const size_t at = logits_.size();
        for (int32_t v = 0; v < config_.vocab; ++v)
          logits_.push_back(static_cast<float>(6 * Sampler::uniform(seen, v) - 3));
        if (change) change(s, std::span(logits_).subspan(at));
      }
    }
    return logits_;
  }

 private:
  void run_copies(size_t most) {
    for (; most > 0 && !copies_.empty(); --most, copies_.pop_front()) {
      const auto page = kv_.begin() + copies_.front().block * config_.block_size;
      const auto slot = host_.begin() + copies_.front().slot * config_.block_size;
      if (copies_.front().to_host)
        std::copy_n(page, config_.block_size, slot);
      else
        std::copy_n(slot, config_.block_size, page);
    }
  }
  static uint64_t mix(uint64_t a, uint64_t b) {
    a = (a ^ b) * 0x9e3779b97f4a7c15u;
    return a ^ (a >> 29);
  }
  uint64_t& slot(const BatchSeq& s, size_t group, int32_t position) {
    const auto logical = static_cast<size_t>(position / config_.block_size);
    check(logical < s.blocks[group].size(), "block table too short");
    const int32_t block = s.blocks[group][logical];
    check(block >= 0 && block < config_.options.num_blocks, "a visible block is missing");
    return kv_[static_cast<size_t>(block) * config_.block_size + position % config_.block_size];
  }
  uint64_t token(const BatchSeq& s, int32_t i) {
    const int32_t position = s.past + i;
    uint64_t all = 1;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const int32_t window = groups_[g].window;
      uint64_t seen = 7;
      for (int32_t j = window ? std::max(0, position - window + 1) : 0; j < position; ++j)
        seen = mix(seen, slot(s, g, j));
      const uint64_t own = mix(mix(mix(seen, s.tokens[i]), position), mix(g, rope_variant(s.rope_length)));
      slot(s, g, position) = own;
      all = mix(all, mix(seen, own));
    }
    return all;
  }

  MockConfig config_;
  std::vector<KvGroupInfo> groups_;
  std::vector<uint64_t> kv_, host_;
  std::deque<BlockCopy> copies_;  // under way
  size_t forwards_ = 0;
  std::vector<float> logits_;
};

// The same where tokens are chosen on the device, one step ahead: a token that the step before chooses is looked up
// when the step is issued, as a device would, and the host hears of it when it collects. Temperature alone, with all
// edits, histories and logprobs.
class MockSamplingExecutor : public MockExecutor {
 public:
  explicit MockSamplingExecutor(MockConfig config, SamplingRoom room = {.edits = 500, .history = 400})
      : MockExecutor(std::move(config)), room_(room), histories_(room.history) {}
  bool samples() const override { return true; }
  SamplingRoom sampling_room() const override { return room_; }
  std::function<void()> collecting;  // called before each collect; may throw
  int issued = 0, copied = 0, most_in_flight = 0, histories_written = 0;
  bool broken = false;  // every row

  void issue(const Batch& batch, const StepSampling& sampling) override {
    check(flights_.size() < 2, "two steps are under way");
    check(sampling.edits.size() <= static_cast<size_t>(room_.edits), "more edits than there is room for");
    for (const HistoryWrite& h : sampling.histories) {
      check(h.at >= 0 && h.at + std::ssize(h.counts) <= room_.history, "a history outside of its memory");
      check(h.counts[0].token == std::ssize(h.counts) - 1 && h.counts[0].token <= h.counts[0].count, "its head");
      std::ranges::copy(h.counts, histories_.begin() + h.at);
      ++histories_written;
    }
    Batch resolved = batch;
    std::vector<std::vector<int32_t>> patched;
    for (BatchSeq& s : resolved.seqs) {
      if (s.earlier_row < 0) continue;
      check(static_cast<size_t>(s.earlier_row) < last_.size(), "the step before has no such row");
      auto& tokens = patched.emplace_back(s.tokens.begin(), s.tokens.end());
      tokens.back() = std::max(0, last_[s.earlier_row]);
      s.tokens = tokens;
    }
    const auto logits = MockExecutor::forward(resolved);
    check(logits.size() == sampling.rows.size() * vocab_size(), "a row, a sampling");
    Flight& flight = flights_.emplace_back();
    for (size_t r = 0; r < sampling.rows.size(); ++r) {
      const auto row = logits.subspan(r * vocab_size(), vocab_size());
      flight.tokens.push_back(broken ? kNotFinite : choose(row, sampling.rows[r], sampling.edits));
      auto& entries = flight.logprobs.emplace_back();
      if (sampling.rows[r].logprobs < 0 || flight.tokens.back() < 0) continue;
      const TokenLogprob of = *Sampler::logprob(row, flight.tokens.back(), sampling.rows[r].logprobs);
      entries.push_back({of.rank, of.logprob});
      for (const auto& [token, logprob] : of.top) entries.push_back({token, logprob});
    }
    last_ = flight.tokens;
    ++issued;
    most_in_flight = std::max(most_in_flight, static_cast<int>(flights_.size()));
  }
  std::span<const int32_t> collect() override {
    check(!flights_.empty(), "no step is under way");
    collected_ = std::move(flights_.front());
    flights_.erase(flights_.begin());
    if (collecting) collecting();
    return collected_.tokens;
  }
  std::span<const LogprobEntry> logprobs(size_t row) const override { return collected_.logprobs[row]; }
  std::span<const float> forward(const Batch& batch) override {
    check(flights_.empty(), "steps were not collected");
    ++copied;
    return MockExecutor::forward(batch);
  }

 private:
  int32_t choose(std::span<const float> logits, const RowSampling& r, std::span<const LogitEdit> edits) {
    std::vector<float> row(logits.begin(), logits.end());
    for (const LogitEdit& e : edits.subspan(r.edits, r.masks)) {
      check(e.after < 0 || r.earlier_row >= 0, "a mask after a token that no row gives");
      if (e.after < 0 || e.after == last_.at(r.earlier_row)) row.at(e.token) += e.bias;
    }
    for (const LogitEdit& e : edits.subspan(r.edits + r.masks, r.biases)) row.at(e.token) += e.bias;
    if (r.history < 0) return draw(row, r);
    TokenCount& head = histories_.at(r.history);
    const auto counts = std::span(histories_).subspan(r.history + 1, head.token);
    for (const TokenCount& c : counts) {
      float& x = row.at(c.token);
      x = x > 0 ? x / r.repetition_penalty : x * r.repetition_penalty;
      if (c.count > 0) x -= r.frequency_penalty * static_cast<float>(c.count) + r.presence_penalty;
    }
    const int32_t token = draw(row, r);
    if (token < 0) return token;
    if (const auto it = std::ranges::find(counts, token, &TokenCount::token); it != counts.end()) {
      ++it->count;
    } else {
      check(head.token < head.count, "the history is longer than its room");
      histories_.at(r.history + 1 + head.token++) = {token, 1};
    }
    return token;
  }
  static int32_t draw(std::span<const float> row, const RowSampling& r) {
    const float most = std::ranges::max(row);
    if (most == -std::numeric_limits<float>::infinity()) return kNoneLeft;
    if (r.temperature == 0) return static_cast<int32_t>(std::ranges::find(row, most) - row.begin());
    const auto weight = [&](float x) { return std::exp((static_cast<double>(x) - most) / r.temperature); };
    double total = 0, reached = 0;
    for (const float x : row) total += weight(x);
    int32_t last = 0;
    for (int32_t token = 0; token < std::ssize(row); ++token) {
      if (weight(row[token]) > 0) last = token;
      reached += weight(row[token]);
      if (r.uniform * total < reached) return token;
    }
    return last;
  }

  struct Flight {
    std::vector<int32_t> tokens;
    std::vector<std::vector<LogprobEntry>> logprobs;
  };
  SamplingRoom room_;
  std::vector<TokenCount> histories_;
  std::vector<Flight> flights_;
  std::vector<int32_t> last_;
  Flight collected_;
};

// The tokens that a request gives alone: one token per forward over private blocks, no scheduler and no pool.
inline std::vector<int32_t> tokens_alone(MockConfig config, const Request& request,
                                         std::vector<TokenLogprob>* logprobs = nullptr) {
  const int32_t end = static_cast<int32_t>(request.prompt.size()) + request.sampling.max_tokens;
  const int32_t blocks = end / config.block_size + 1;
  config.options.num_blocks = blocks * static_cast<int32_t>(config.windows.size());
  MockExecutor model(config);
  std::vector<std::vector<int32_t>> tables(config.windows.size());
  int32_t next = 0;
  for (auto& table : tables)
    for (int32_t b = 0; b < blocks; ++b) table.push_back(next++);
  Sampler sampler(config.vocab);
  SamplerState state{.seed = request.sampling.seed.value_or(0)};
  state.ending = request.sampling.stop_token_ids;
  if (!request.sampling.ignore_eos) state.ending.insert(state.ending.end(), config.eos.begin(), config.eos.end());
  TokenHistory history;
  for (const int32_t t : request.prompt) history.add_prompt(t);
  std::vector<int32_t> tokens = request.prompt, output;
  for (size_t at = 0; static_cast<int32_t>(output.size()) < request.sampling.max_tokens; ++at) {
    Batch batch;
    BatchSeq& s = batch.seqs.emplace_back();
    s.tokens = std::span(tokens).subspan(at, 1);
    s.past = static_cast<int32_t>(at);
    s.rope_length = static_cast<int32_t>(request.prompt.size());
    for (const auto& table : tables) s.blocks.emplace_back(table);
    const auto logits = model.forward(batch);
    if (at + 1 < tokens.size()) continue;
    const auto sampled =
        sampler.sample(logits, request.sampling, state, history, tokens, static_cast<int32_t>(output.size()));
    check(sampled.ok(), "the mock's logits are finite");
    tokens.push_back(sampled->token);
    output.push_back(sampled->token);
    if (logprobs != nullptr) logprobs->push_back(sampled->logprob);
    history.add_output(sampled->token);
    if (!request.sampling.ignore_eos && std::ranges::find(config.eos, sampled->token) != config.eos.end()) break;
    if (std::ranges::find(request.sampling.stop_token_ids, sampled->token) != request.sampling.stop_token_ids.end()) {
      break;
    }
  }
  return output;
}

}  // namespace pinion
