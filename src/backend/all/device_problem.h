// A case's data in the memory of a device that has its own, with values of narrower types: what OpProblem is for
// backends that compute in the host's memory.
#pragma once

#include "backend/all/op_cases.h"

namespace pinion {

// The types that a graph on such a device gives an op's values: all f32; all bf16 or f16, where that is also the type
// of the case's matrices and cache; and for the ops at the seams the mixtures of a narrow branch with an f32 residual
// stream, and of a narrow row with f32 logits.
std::vector<ValueTypes> value_types(const OpCase& c);
std::string to_text(const ValueTypes& types, const OpCase& c);  // "bfloat16,float32 -> float32"

// How far outputs may lie from the reference, as a fraction of the largest: the rounding of the outputs (half a unit in
// the last place, and one more where an intermediate is rounded) or, for f32, another order of summation.
double tolerance(const ValueTypes& types);

class DeviceProblem {
 public:
  // Copies everything to the device. The inputs must be representable in types.in (OpProblem::round_inputs).
  // Throws DeviceError when the device has no room.
  DeviceProblem(OpProblem& problem, Device& device, Stream& stream, const ValueTypes& types);

  // Runs one kernel on a fresh copy of the cache; outputs and workspace are filled with NaN first.
  OpProblem::Outcome run(const Kernel& kernel, const Tuning& tuning);
  // Seconds of one launch inside a recording of many, as a model's step runs it; the first weight is read from copies
  // in turn that take cold_bytes together. The fastest of several replays.
  double time(const Kernel& kernel, const Tuning& tuning, double min_seconds, size_t cold_bytes);

 private:
  std::byte* allocate(size_t bytes);
  template <class T>
  const T* upload(const std::vector<T>& host);
  std::byte* upload(const void* host, size_t bytes);
  LaunchArgs args(const Kernel& kernel, const Tuning& tuning);

  OpProblem& problem_;
  Device& device_;
  Stream& stream_;
  ValueTypes types_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<WeightView> weights_;
  std::vector<TensorView> in_, out_;
  std::vector<RopeTable> ropes_;
  std::vector<KvView> kv_;
  BatchView batch_;
  std::byte* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
};

}  // namespace pinion
