// Times linear kernels on the device they will run on, over weights of real size. On a device with memory of its own a
// recording of many launches is timed, and the weight is read from copies in turn that its caches cannot hold together:
// in a model's step every weight comes from memory once.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"

namespace pinion {

class LinearTimer {
 public:
  explicit LinearTimer(Device& device) : device_(device), stream_(device.make_stream()) {}
  // Microseconds of one launch of `kernel` on the call, a Linear. Errors: exhausted.
  Result<double> time(const Kernel& kernel, const Tuning& tuning, const Call& call);

 private:
  Status prepare(const WeightSpec& spec);
  Result<std::unique_ptr<Buffer>> random_tensor(DType type, int64_t n);
  double time_one_by_one(const Kernel& kernel, const LaunchArgs& args);
  double time_recorded(const Kernel& kernel, LaunchArgs args, std::vector<WeightView> views);

  Device& device_;
  std::unique_ptr<Stream> stream_;
  WeightSpec spec_;  // of what weights_ holds: filling it costs more than timing it, so that problems share it
  std::vector<std::unique_ptr<Buffer>> weights_;
  DType x_type_ = DType::f32;
  int64_t x_elements_ = 0;
  std::unique_ptr<Buffer> x_;  // the largest input so far
};

}  // namespace pinion
