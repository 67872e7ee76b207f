#include "compiler/time_linear.h"

#include <algorithm>
#include <limits>

#include "compiler/timing.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

constexpr double kTimeBudget = 0.02;       // seconds of repetitions: enough to settle within a few percent
constexpr double kRecordedBudget = 0.004;  // a device of its own is disturbed by nobody
constexpr size_t kLaunches = 16;           // in a recording, of few rows; of many 4 take long enough
constexpr int64_t kManyRows = 256;

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
  const size_t copies = device_.host_visible() ? 1 : std::clamp<size_t>(kColdBytes / bytes, 1, kLaunches);
  for (size_t i = 0; i < copies; ++i) {
    PINION_TRY(auto copy, timing_weight(spec, device_, *stream_));
    weights_.push_back(std::move(copy));
  }
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
    if (!device_.host_visible()) {
      before_.reset();
      PINION_TRY(before_, device_.allocate(x_->size()));
      stream_->copy_on_device(before_->data(), x_->data(), x_->size());
    }
  }
  if (!device_.host_visible() && norm_columns_ < op.in) {
    PINION_TRY(norm_weight_, random_tensor(DType::f32, op.in));
    norm_columns_ = op.in;
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
  if (device_.host_visible()) return 1e6 * time_one_by_one(kernel, args);
  PINION_TRY(const double seconds, time_recorded(kernel, args, std::move(views)));
  return 1e6 * seconds;
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

Result<double> LinearTimer::time_recorded(const Kernel& kernel, LaunchArgs args, std::vector<WeightView> views) {
  const int64_t rows = args.in[0].shape[0], width = args.in[0].shape[1];
  const Op norm_op = RmsNorm{.width = width};
  const WeightSpec norm_spec{.dtype = DType::f32, .rows = 1, .cols = width};
  const WeightView norm_view{norm_spec, norm_weight_->data()};
  const TensorView norm_in{before_->data(), args.in[0].dtype, {rows, width}};
  const LaunchArgs norm{.op = &norm_op, .in = {&norm_in, 1}, .out = args.in, .weights = {&norm_view, 1}};
  const Call norm_call{.op = &norm_op,
                       .rows = rows,
                       .weights = {&norm_spec, 1},
                       .values = {.in = {args.in[0].dtype}, .out = {args.in[0].dtype}}};
  const Kernel* before = nullptr;  // a device without such a kernel has its linears timed one after another
  for (const Kernel& k : backend_.kernels(OpKind::rms_norm)) {
    if (before == nullptr && k.workspace == nullptr && k.why_not(norm_call, device_.info()).empty()) before = &k;
  }
  const size_t launches = rows > kManyRows ? 4 : kLaunches;
  const auto launch = [&](size_t i) {
    if (before != nullptr && i % 2 == 0) before->launch(norm, *stream_);
    views[0].data = weights_[i % weights_.size()]->data();
    args.weights = views;
    kernel.launch(args, *stream_);
  };
  launch(0);  // what a library sets up at its first call is no part of a recording
  stream_->synchronize();
  check(stream_->begin_recording(), "timing on a device needs recordings");
  for (size_t i = 0; i < launches; ++i) launch(i);
  const auto recording = stream_->end_recording();
  double best = std::numeric_limits<double>::infinity(), total = 0;
  for (int i = 0; i < 3 || (total < kRecordedBudget && i < 50); ++i) {
    const auto start = std::chrono::steady_clock::now();
    recording->replay(*stream_);
    stream_->synchronize();
    const double seconds = seconds_since(start);
    if (i > 0) best = std::min(best, seconds / static_cast<double>(launches));
    total += seconds;
  }
  return best;
}

}  // namespace pinion
