#include "compiler/time_linear.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "checkpoint/checkpoint.h"
#include "compiler/packed_weights.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

constexpr double kTimeBudget = 0.02;              // seconds of repetitions: enough to settle within a few percent
constexpr double kRecordedBudget = 0.004;         // a device of its own is disturbed by nobody
constexpr size_t kLaunches = 16;                  // in a recording
constexpr size_t kColdBytes = size_t{192} << 20;  // three times the largest cache of today's GPUs

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Result<std::unique_ptr<Buffer>> LinearTimer::random_tensor(DType type, int64_t n) {
  const size_t bytes = std::max<size_t>(64, n * byte_size(type));
  PINION_TRY(auto host, device_.allocate_pinned(bytes));
  uint32_t state = 12345;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 1664525 + 1013904223;
    store_f32(host->data(), type, i, static_cast<float>(state >> 8) / (1 << 24) - 0.5f);
  }
  if (device_.host_visible()) return host;
  PINION_TRY(auto buffer, device_.allocate(bytes));
  stream_->copy_to_device(buffer->data(), host->data(), bytes);
  stream_->synchronize();
  return buffer;
}

Status LinearTimer::prepare(const WeightSpec& spec) {
  if (!weights_.empty() && spec_.rows == spec.rows && spec_.cols == spec.cols && spec_.dtype == spec.dtype &&
      spec_.layout == spec.layout && spec_.packing == spec.packing) {
    return {};
  }
  weights_.clear();
  spec_ = spec;
  const size_t bytes = std::max<size_t>(64, spec.bytes());
  PINION_TRY(auto first, device_.allocate_pinned(bytes));
  if (spec.layout == Layout::packed) {
    fill_packed(spec.row_layout(), {first->data(), spec.bytes()});
  } else {
    fill_dummy("timing.weight", spec.dtype, {first->data(), spec.bytes()}, spec.cols);
  }
  if (device_.host_visible()) {
    weights_.push_back(std::move(first));
    return {};
  }
  const size_t copies = std::clamp<size_t>(kColdBytes / bytes, 1, kLaunches);
  for (size_t i = 0; i < copies; ++i) {
    PINION_TRY(auto copy, device_.allocate(bytes));
    stream_->copy_to_device(copy->data(), first->data(), bytes);
    weights_.push_back(std::move(copy));
  }
  stream_->synchronize();
  return {};
}

Result<double> LinearTimer::time(const Kernel& kernel, const Tuning& tuning, const Call& call) {
  const auto& op = std::get<Linear>(*call.op);
  const DType in_type = call.values.in[0], out_type = call.values.out[0];
  PINION_OK(prepare(call.weights[0]));
  if (!x_ || x_type_ != in_type || x_elements_ < call.rows * op.in) {
    x_.reset();
    PINION_TRY(x_, random_tensor(in_type, call.rows * op.in));
    x_type_ = in_type, x_elements_ = call.rows * op.in;
  }
  PINION_TRY(auto y, device_.allocate(call.rows * op.output_width() * byte_size(out_type)));
  const size_t work = kernel.workspace ? kernel.workspace(call, tuning, device_.info()) : 0;
  PINION_TRY(auto workspace, device_.allocate(std::max<size_t>(work, 64)));
  std::unique_ptr<Buffer> bias;
  std::vector<WeightView> views{{call.weights[0], weights_[0]->data()}};
  if (op.bias) {
    PINION_TRY(bias, random_tensor(call.weights[1].dtype, call.weights[1].cols));
    views.push_back({call.weights[1], bias->data()});
  }
  const TensorView in{x_->data(), in_type, {call.rows, op.in}},
      out{y->data(), out_type, {call.rows, op.output_width()}};
  const LaunchArgs args{call.op, {&in, 1}, {&out, 1}, views, {workspace->data(), work}, nullptr, tuning};
  return 1e6 * (device_.host_visible() ? time_one_by_one(kernel, args) : time_recorded(kernel, args, views));
}

double LinearTimer::time_one_by_one(const Kernel& kernel, const LaunchArgs& args) {
  std::vector<double> times;
  double total = 0;
  for (int i = 0; i < 3 || (total < kTimeBudget && i < 50); ++i) {
    const auto start = std::chrono::steady_clock::now();
    kernel.launch(args, *stream_);
    stream_->synchronize();
    const double seconds = seconds_since(start);
    if (i > 0) times.push_back(seconds);  // the first run touches the pages
    total += seconds;
  }
  std::ranges::nth_element(times, times.begin() + times.size() / 2);
  return times[times.size() / 2];
}

double LinearTimer::time_recorded(const Kernel& kernel, LaunchArgs args, std::vector<WeightView> views) {
  kernel.launch(args, *stream_);  // what a library sets up at its first call is no part of a recording
  stream_->synchronize();
  check(stream_->begin_recording(), "timing on a device needs recordings");
  for (size_t i = 0; i < kLaunches; ++i) {
    views[0].data = weights_[i % weights_.size()]->data();
    args.weights = views;
    kernel.launch(args, *stream_);
  }
  const auto recording = stream_->end_recording();
  double best = std::numeric_limits<double>::infinity(), total = 0;
  for (int i = 0; i < 3 || (total < kRecordedBudget && i < 50); ++i) {
    const auto start = std::chrono::steady_clock::now();
    recording->replay(*stream_);
    stream_->synchronize();
    const double seconds = seconds_since(start);
    if (i > 0) best = std::min(best, seconds / kLaunches);
    total += seconds;
  }
  return best;
}

}  // namespace pinion
