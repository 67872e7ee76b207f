// Executor: runs one forward of an engine on a device over the paged KV cache. Owned by whoever opened the engine, used
// by one thread at a time (the engine loop, or a command that runs steps by hand).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/sampling.h"
#include "base/result.h"
#include "runtime/host_slots.h"

namespace pinion {

class Engine;

// One sequence's part of a step: q_len new tokens that follow `past` tokens already in the cache.
struct BatchSeq {
  std::span<const int32_t> tokens;  // the new tokens
  int32_t past = 0;                 // tokens already written
  int32_t rope_length = 0;          // the prompt's length: chooses length-dependent rope variants
  std::vector<std::span<const int32_t>>
      blocks;           // a block table per KvGroup, covering past + tokens; -1 behind the window
  int32_t outputs = 1;  // logits wanted for the last `outputs` tokens: 0, 1 … tokens.size()
  // Not negative: the last of `tokens` is not known yet; it is what the step issued just before this one chooses for
  // this row of its outputs.
  int32_t earlier_row = -1;
};

struct Batch {
  std::vector<BatchSeq> seqs;
  bool hidden = false;  // the rows' final hidden states are wanted, see Executor::hidden()
  bool logits = true;   // false, with `hidden`: the head does not run, and forward() returns nothing
};

// A history to be written before the step's rows are drawn: {entries, room}, then the entries.
struct HistoryWrite {
  int32_t at = 0;
  std::vector<TokenCount> counts;
};

// What the rows of an issued step are drawn with. RowSampling::edits are indices of `edits`.
struct StepSampling {
  std::span<const RowSampling> rows;  // one per row of logits
  std::span<const LogitEdit> edits = {};
  std::span<const HistoryWrite> histories = {};
};

struct SamplingRoom {
  int32_t edits = 0;    // in one step
  int32_t history = 0;  // entries of all histories together
};

struct KvGroupInfo {
  int32_t window = 0;  // 0: full
  int32_t layers = 0;
  size_t block_bytes = 0;  // of one block over the group's layers; every group's page is padded to the largest
};

struct ExecutorOptions {
  int32_t num_blocks = 0;  // pages in the pool, shared by the groups
  int32_t max_batch_size = 64;
  int32_t max_num_tokens = 2048;
  int32_t max_outputs = 0;  // rows of logits in one step; 0: max_batch_size
  int32_t max_seq_len = 0;  // 0: the model's context
  int32_t host_blocks = 0;  // pages of the host tier; 0: none
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual int32_t vocab_size() const = 0;
  virtual int32_t context_length() const = 0;
  virtual int32_t block_size() const = 0;  // tokens per block
  virtual std::span<const KvGroupInfo> kv_groups() const = 0;
  virtual const ExecutorOptions& options() const = 0;
  virtual std::span<const int32_t> eos_token_ids() const = 0;
  // Whether the KV content of a token depends on more than the tokens before it (rope variants by prompt length):
  // part of the root of the prefix hash.
  virtual uint64_t rope_variant(int32_t prompt_length) const = 0;
  // Runs the batch; returns logits [sum of outputs, vocab] in f32, valid until the next call. Throws DeviceError.
  virtual std::span<const float> forward(const Batch& batch) = 0;
  // What the head reads, [sum of outputs, hidden_size] in f32, of the last forward() whose batch had `hidden`; valid
  // until the next. hidden_size() == 0: this executor does not give it.
  virtual int32_t hidden_size() const { return 0; }
  virtual std::span<const float> hidden() const { return {}; }
  // Where the device chooses tokens itself, a step may be issued while the one before it runs, two at a time.
  virtual bool samples() const { return false; }
  virtual SamplingRoom sampling_room() const { return {}; }
  // Runs the batch without waiting for it; the rows of logits stay on the device. What the spans point to is read
  // before this returns. Throws DeviceError.
  virtual void issue(const Batch& batch, const StepSampling& sampling) {
    (void)batch, (void)sampling;
    check(false, "this executor does not sample");
  }
  // Waits for the oldest issued step that was not collected: a token per row (kNotFinite, kNoneLeft: there is none),
  // valid until the next but one issue. Throws DeviceError; the step then counts as collected.
  virtual std::span<const int32_t> collect() { return {}; }
  // Of a row of the step collected last that asked for them (and has a token), valid as long: as LogprobEntry says.
  virtual std::span<const LogprobEntry> logprobs(size_t row) const {
    (void)row;
    return {};
  }
  // What the device took for the steps collected so far, without the copies that bring a step up; 0: not measured.
  virtual double device_seconds() const { return 0; }
  // What the caller's thread has waited for the device inside these calls so far, or computed in its place where the
  // device computes on the host: the rest of the calls' time is the host's own work.
  virtual double waited_seconds() const { return 0; }
  std::span<const int32_t> forward_sampled(const Batch& batch, std::span<const RowSampling> rows) {
    issue(batch, {.rows = rows});
    return collect();
  }
  // Copies pages to slots of the host tier and back, in the order given and of the calls, beside the steps: copies to
  // the device begin when the steps issued so far have ended; `awaited`: the steps issued from now on begin when all
  // copies so far have ended. A page that is being copied to the host is written by no step before one that awaits it.
  // Throws DeviceError, and what the slots hold is then unknown.
  virtual void move_blocks(std::span<const BlockCopy> copies, bool awaited) {
    check(copies.empty() && !awaited, "this executor has no host tier");
  }
  virtual void copy_block(int32_t from, int32_t to) = 0;  // for forks (n > 1) that share a partial block
};

}  // namespace pinion
