// What a step tells the device, in one block: token ids, positions, tables, rotations, how to sample. The host fills a
// pinned block and one copy brings it up; where the device computes in the host's memory the block is read in place.
// There are two pinned blocks, so that the host fills one while the copy of the step before may still be under way. The
// layout depends on the step's sizes alone, so that every step padded to the same sizes lies at the same addresses:
// recordings rely on it.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/largest_logits.h"
#include "graph/graph.h"
#include "runtime/executor.h"

namespace pinion {

// A step's rows, sequences and table widths. Rows past the batch's own are padding: one per sequence without a context.
struct StepSizes {
  int32_t tokens = 0, seqs = 0, outputs = 0;
  int32_t max_blocks = 1;
  int32_t max_context = 1;
  bool operator==(const StepSizes&) const = default;
};

class StepData {
 public:
  // `views` are the layers' pages, without tables; `group_of_layer` says whose table a layer reads.
  // Errors: exhausted.
  static Result<std::unique_ptr<StepData>> create(const Graph& graph, std::span<const KvView> views,
                                                  std::span<const int32_t> group_of_layer, size_t groups,
                                                  int32_t block_size, const ExecutorOptions& limits, Device& device);

  StepSizes sizes(const Batch& batch) const;  // without padding
  // Lays the batch out; `sizes` are its own, or larger ones that it is padded to. `sampling`: of every row of outputs,
  // or of none. keep_logits: the host looks at them whatever the sampling; without sampling it does.
  // Checks it against the limits.
  void bind(const Batch& batch, const StepSizes& sizes, const StepSampling& sampling = {}, bool keep_logits = false);
  // Of a step: what a logit_bias of a thousand tokens in some of its rows takes, and a few masks in each.
  static int32_t most_edits(const ExecutorOptions& limits) { return 4096 + 256 * limits.max_outputs; }
  Upload upload() const;  // what the device needs before the first launch that reads view(); of no bytes on a host
  const BatchView& view() const { return view_; }
  // Of a device with memory of its own, on the device: what rows of outputs are drawn with (rows without: the largest
  // logit), and the number of the bound step's pinned block, 0 or 1 in turn.
  const RowSampling* sampling() const { return device_sampling_; }
  const LargestLogits& largest() const { return largest_; }
  const LogitEdit* edits() const { return device_edits_; }
  const int32_t* slot_on_device() const { return device_slot_; }
  int32_t slot() const { return slot_; }
  // BatchSeq::earlier_row's: max_outputs of each slot.
  void read_earlier_tokens_at(const int32_t* tokens) { earlier_tokens_ = tokens; }
  static size_t bytes(const Graph& graph, size_t groups, const StepSizes& sizes);

 private:
  StepData(const Graph& graph, const ExecutorOptions& limits, int32_t block_size)
      : graph_(graph), limits_(limits), block_size_(block_size) {}
  void lay_out(const StepSizes& sizes, size_t edits);
  void fill_sequence(const BatchSeq& seq, int32_t index, int32_t row, const StepSizes& sizes);
  void fill_rope(size_t rope, int32_t rope_length, int32_t past, int32_t n, int32_t row);

  // Cosines and sines by position of the variant that was seen first, as far as they were needed; another variant's
  // (dynamic NTK: one for every prompt length) are computed for each step.
  struct RopeRows {
    bool known = false;
    uint64_t variant = 0;
    RopeFrequencies frequencies;
    std::vector<float> rows;  // [positions][2][rotary_dim / 2]
  };

  const Graph& graph_;
  ExecutorOptions limits_;
  int32_t block_size_;
  std::unique_ptr<Buffer> host_[2], device_;  // device_ null: host_[0] is read in place
  int32_t slot_ = 0;                          // of the bound step
  size_t used_ = 0;
  // Where the arrays of the current layout lie on the host.
  int32_t *token_ids_ = nullptr, *positions_ = nullptr, *row_seq_ = nullptr, *seq_start_ = nullptr,
          *context_len_ = nullptr, *output_rows_ = nullptr, *earlier_row_ = nullptr;
  RowSampling* sampling_ = nullptr;
  const RowSampling* device_sampling_ = nullptr;
  uint64_t* found_ = nullptr;  // as largest_ on the device
  int32_t* stored_ = nullptr;
  LargestLogits largest_;
  LogitEdit* edits_ = nullptr;
  const LogitEdit* device_edits_ = nullptr;
  const int32_t *device_slot_ = nullptr, *earlier_tokens_ = nullptr;
  std::vector<int32_t*> tables_;
  std::vector<const int32_t*> device_tables_;
  std::vector<float*> cos_, sin_;
  std::vector<RopeRows> rope_rows_;
  std::vector<int32_t> group_of_layer_;
  std::vector<RopeTable> rope_views_;
  std::vector<KvView> kv_views_;
  BatchView view_;
};

}  // namespace pinion
