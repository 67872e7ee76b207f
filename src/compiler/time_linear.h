// Times linear kernels on the device they will run on, over weights of real size. On a device with memory of its own a
// recorded chain is timed as a model's step has it: a small kernel before every other linear, which makes its input, a
// long one before the rest, and the weight read from copies in turn that the caches cannot hold together, since in a
// step every weight comes from memory once. How a kernel starts behind another and ends before the next is part of its
// time.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"

namespace pinion {

class LinearTimer {
 public:
  LinearTimer(const Backend& backend, Device& device)
      : backend_(backend), device_(device), stream_(device.make_stream()) {}
  // Microseconds of one launch of `kernel` on the call, a Linear; in a chain with the small kernel's, the same for all.
  // Errors: exhausted.
  Result<double> time(const Kernel& kernel, const Tuning& tuning, const Call& call);

 private:
  Status prepare(const WeightSpec& spec);
  Result<std::unique_ptr<Buffer>> random_tensor(DType type, int64_t n);
  double time_one_by_one(const Kernel& kernel, const LaunchArgs& args);
  Result<double> time_recorded(const Kernel& kernel, LaunchArgs args, std::vector<WeightView> views);

  const Backend& backend_;
  Device& device_;
  std::unique_ptr<Stream> stream_;
  WeightSpec spec_;  // of what weights_ holds: filling it costs more than timing it, so that problems share it
  std::vector<std::unique_ptr<Buffer>> weights_;
  DType x_type_ = DType::f32;
  int64_t x_elements_ = 0;
  std::unique_ptr<Buffer> x_;       // the largest input so far
  std::unique_ptr<Buffer> before_;  // as much, from which the small kernel makes it
  int64_t norm_columns_ = 0;
  std::unique_ptr<Buffer> norm_weight_;
};

}  // namespace pinion
