// One case table per op. It serves correctness (every kernel that accepts a case, against the reference) and timing.
// A case is a description; make_problem fills it with random data from a seed, and launch_case runs one kernel on it.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace pinion {

struct CaseSequence {
  int32_t tokens = 1;   // rows of this step
  int32_t context = 1;  // tokens in the cache after it
};

struct OpCase {
  std::string name;
  Op op;
  std::vector<WeightSpec> weights;
  std::vector<CaseSequence> seqs;  // the rows of every op are their tokens
  int inputs = 1;
  DType kv_dtype = DType::f32;
  int32_t block_size = 64;
  int64_t rows() const;
  Call call() const;  // borrows from this case
};

enum class CaseSet { correctness, timing };
std::vector<OpCase> op_cases(OpKind kind, CaseSet set);
std::vector<OpCase> packed_linear_cases(CaseSet set);  // part of the linears', the experts' and the embeddings'
std::vector<OpCase> packed_moe_cases(CaseSet set);
std::vector<OpCase> packed_embed_cases();

// A case's data in plain memory, 64-byte aligned. Cache slots that no sequence has written hold NaN, blocks lie in
// random order, and those behind the window are freed.
class OpProblem {
 public:
  OpProblem(const OpCase& c, uint64_t seed);
  const OpCase& description() const { return case_; }

  struct Outcome {
    std::vector<std::vector<float>> out;
    std::vector<std::byte> cache;  // as the kernel left it
  };
  // Rounds the inputs to what values of these types hold, so that a kernel on narrow values and the f32 oracle see the
  // same numbers.
  void round_inputs(const ValueTypes& types);
  // Runs one kernel on a fresh copy of the cache. Workspace is filled with NaN first.
  Outcome run(const Kernel& kernel, const Tuning& tuning, const DeviceInfo& device, Stream& stream);
  // The fastest of several runs, in seconds (others may use the machine). The weight is read from one of several copies
  // in turn, cold_bytes together, so that caches do not hold it: a layer's weights come from memory once a step.
  double time(const Kernel& kernel, const Tuning& tuning, const DeviceInfo& device, Stream& stream, double min_seconds,
              size_t cold_bytes);

  // The problem reduced to some of its rows [first, last) of one sequence: what a smaller batch would hold.
  OpProblem rows_of(int64_t seq, int64_t first, int64_t last) const;

  double bytes() const;  // that the op must move at least: weights, cache, inputs and outputs
  double flops() const;

 private:
  template <class T>
  struct Allocator {  // as devices give it: 64-byte aligned, large memory in huge pages
    using value_type = T;
    T* allocate(size_t n);
    void deallocate(T* p, size_t) { std::free(p); }
    bool operator==(const Allocator&) const { return true; }
  };
  using Memory = std::vector<std::byte, Allocator<std::byte>>;
  friend class DeviceProblem;
  void bind();  // the views, after the data moved
  LaunchArgs args(const Kernel& kernel, const Tuning& tuning, const DeviceInfo& device);

  OpCase case_;
  std::vector<Memory> cold_;  // copies of the first weight
  std::vector<Memory> weight_data_, input_data_, output_data_;
  std::vector<int64_t> input_widths_, output_widths_;
  Memory cache_, workspace_;
  std::vector<int32_t> ids_, positions_, row_seq_, starts_, contexts_, output_rows_, table_;
  std::vector<float> cos_, sin_;
  int32_t max_blocks_ = 1;
  std::vector<WeightView> weights_;
  std::vector<TensorView> in_, out_;
  std::vector<RopeTable> ropes_;
  std::vector<KvView> kv_;
  BatchView batch_;
};

}  // namespace pinion
