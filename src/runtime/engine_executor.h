// The Executor over an Engine on one device: loads the weights, resolves kernel names, takes all memory at once, and
// runs steps. The hot loop is `for (step) kernel->launch(args, stream)`; binding a batch is filling a few index arrays.
#pragma once

#include <functional>
#include <memory>

#include "backend/backend.h"
#include "backend/stream_order.h"
#include "engine/engine.h"
#include "runtime/executor.h"
#include "runtime/step_data.h"

namespace pinion {

// What a load will take, before it takes it: `pinion plan` and the check at start print the same numbers.
struct MemoryPlan {
  size_t weights = 0, kv = 0, arena = 0, workspace = 0;
  size_t host = 0;  // of the host's memory, for the KV cache's host tier; the others are the device's
  size_t total() const { return weights + kv + arena + workspace; }
};

// The KvGroups of a graph: layers that cache alike; a block's bytes over all its layers.
std::vector<KvGroupInfo> kv_groups(const Graph& graph, DType kv_dtype, int32_t block_size);
// Blocks that `batch` sequences of `seq_len` tokens need, over all groups.
int64_t blocks_needed(std::span<const KvGroupInfo> groups, int32_t block_size, int64_t batch, int64_t seq_len);
MemoryPlan plan_load(const Engine& engine, const Backend& backend, const DeviceInfo& device,
                     const ExecutorOptions& options);

// Called after each node with its outputs (`pinion diff`): the scope, and the values as the device holds them.
using NodeObserver = std::function<void(size_t node, std::span<const TensorView> outputs)>;
// Called after each node, and may write other values into its outputs, which then replace the device's; whether it did.
// For checks that hold one choice fixed while they compare what follows from it.
using NodeEditor = std::function<bool(size_t node, std::span<const TensorView> outputs)>;

class EngineExecutor : public Executor {
 public:
  // The device is borrowed; engine and backend outlive the executor. Zero limits take the model's and sane defaults.
  static Result<std::unique_ptr<EngineExecutor>> create(const Engine& engine, const Backend& backend, Device& device,
                                                        ExecutorOptions options);

  int32_t vocab_size() const override { return static_cast<int32_t>(engine_.graph().vocab_size); }
  int32_t context_length() const override { return static_cast<int32_t>(engine_.graph().context_length); }
  int32_t block_size() const override { return engine_.manifest().block_size; }
  std::span<const KvGroupInfo> kv_groups() const override { return groups_; }
  const ExecutorOptions& options() const override { return options_; }
  std::span<const int32_t> eos_token_ids() const override { return engine_.manifest().eos_token_ids; }
  uint64_t rope_variant(int32_t prompt_length) const override;
  std::span<const float> forward(const Batch& batch) override;
  int32_t hidden_size() const override;
  std::span<const float> hidden() const override { return hidden_; }
  bool samples() const override { return sampling_ != nullptr; }
  SamplingRoom sampling_room() const override { return room_; }
  void issue(const Batch& batch, const StepSampling& sampling) override;
  std::span<const int32_t> collect() override;
  std::span<const LogprobEntry> logprobs(size_t row) const override;
  double device_seconds() const override { return device_seconds_; }
  double waited_seconds() const override { return waited_seconds_; }
  void move_blocks(std::span<const BlockCopy> copies, bool awaited) override;
  void copy_block(int32_t from, int32_t to) override;

  const MemoryPlan& memory() const { return memory_; }
  size_t launches() const { return launches_; }  // of kernels by the last step, sampling's among them
  void observe(NodeObserver observer) { observer_ = std::move(observer); }
  void edit(NodeEditor editor) { editor_ = std::move(editor); }

 private:
  EngineExecutor(const Engine& engine, const Backend& backend, Device& device);
  Status load(ExecutorOptions options);
  TensorView tensor(Value v) const;               // of the bound step
  void synchronize();                             // the stream, counted as waiting
  void launch_all(const Batch* batch = nullptr);  // `batch`: what it wants beside the logits
  void keep_hidden();                             // copies what the head reads
  void launch_head(const Kernel& kernel, const LaunchArgs& args);
  Status make_room_to_sample();
  void sample();
  // Up to the logits on the device, and the tokens where it samples; returns the rows of logits.
  size_t run(const Batch& batch, const StepSampling& sampling);
  void show(size_t node, std::span<TensorView> outputs);

  // Decode steps (a token and an output per sequence) of some sizes, recorded at load: a step runs as the smallest that
  // holds it, padded.
  struct RecordedStep {
    StepSizes sizes;
    std::unique_ptr<Recording> recording;
    size_t launches = 0;
  };
  Status record_decode_steps();
  const RecordedStep* recorded_step(const Batch& batch) const;  // null: none

  const Engine& engine_;
  const Backend& backend_;
  Device& device_;
  ExecutorOptions options_;
  MemoryPlan memory_;
  std::vector<KvGroupInfo> groups_;
  std::unique_ptr<Stream> stream_;
  StreamOrderDevice* order_ = nullptr;  // null: copies of the host tier take their turn among the steps
  std::unique_ptr<Stream> copies_;      // where they run; null: stream_
  std::unique_ptr<Buffer> host_kv_;     // the host tier's pages, pinned; null: none
  std::unique_ptr<Buffer> weights_, kv_, arena_, workspace_;
  std::unique_ptr<Buffer> logits_;                     // the host's copy; null where it reads the device's memory
  std::vector<std::vector<const Kernel*>> kernels_;    // by program, by node
  std::vector<std::vector<WeightView>> node_weights_;  // by node
  std::vector<std::byte*> slot_base_;
  size_t page_bytes_ = 0, launches_ = 0;
  size_t head_ = 0;                 // the node whose input are the final hidden states; past the last: none
  bool head_gives_logits_ = false;  // nothing follows it
  bool found_largest_ = false;      // the last head that was launched left StepData::largest()
  std::vector<std::byte> hidden_bytes_;
  std::vector<float> hidden_;
  NodeObserver observer_;
  NodeEditor editor_;
  SamplingDevice* sampling_ = nullptr;  // null: tokens are chosen on the host
  SamplingRoom room_;
  std::unique_ptr<Buffer> tokens_, tokens_host_, logprobs_host_;  // of max_outputs rows of two steps in turn; pinned
  std::unique_ptr<Buffer> edited_, histories_, penalized_;        // SamplingMemory's
  struct Flight {
    uint64_t begin = 0, end = 0;  // marks
    int32_t slot = 0;
    size_t rows = 0;
  };
  std::vector<Flight> flights_;  // issued and not collected, at most two
  int32_t collected_ = 0;        // the slot of the step collected last
  uint64_t begun_ = 0;           // the mark after the last step's data went up
  double device_seconds_ = 0, waited_seconds_ = 0;
  std::unique_ptr<StepData> step_;
  std::vector<RecordedStep> recorded_;  // by size, then by context
};

}  // namespace pinion
