#include "backend/all/device_problem.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

#include "tensor/convert.h"

namespace pinion {
namespace {

constexpr uint8_t kNanByte = 0xff;  // all ones is NaN in every float type

ValueTypes uniform(DType type) {
  ValueTypes types;
  types.in.fill(type), types.out.fill(type);
  return types;
}

bool matches(const OpCase& c, DType type) {
  for (const WeightSpec& w : c.weights) {
    if (w.rows > 1 && w.dtype != type) return false;
  }
  const bool cached = std::holds_alternative<Attention>(c.op) || std::holds_alternative<RopeKvWrite>(c.op) ||
                      std::holds_alternative<MlaAttention>(c.op) || std::holds_alternative<MlaKvWrite>(c.op);
  return !cached || c.kv_dtype == type;
}

}  // namespace

std::vector<ValueTypes> value_types(const OpCase& c) {
  std::vector<ValueTypes> list{{}};
  // A router's logits and weights are f32 in every graph.
  if (std::holds_alternative<MoeRoute>(c.op)) list[0].out[0] = DType::i32;
  if (std::holds_alternative<MoeLinear>(c.op)) list[0].in[1] = DType::i32;
  if (std::holds_alternative<MoeRoute>(c.op)) return list;
  for (DType t : {DType::bf16, DType::f16}) {
    if (!matches(c, t)) continue;
    list.push_back(uniform(t));
    if (std::holds_alternative<MoeLinear>(c.op)) list.back().in[1] = DType::i32;
    if (std::holds_alternative<MoeCombine>(c.op)) list.back().in[1] = DType::f32;
    ValueTypes seam = uniform(t);
    if (std::holds_alternative<AddRmsNorm>(c.op)) {  // residual stream, branch -> residual stream, branch
      seam.in[0] = seam.out[0] = DType::f32;
    } else if (std::holds_alternative<Add>(c.op)) {  // residual stream, branch -> residual stream
      seam.in[0] = seam.out[0] = DType::f32;
    } else if (std::holds_alternative<RmsNorm>(c.op) || std::holds_alternative<LayerNorm>(c.op)) {
      seam.in[0] = DType::f32;
    } else if (std::holds_alternative<Linear>(c.op)) {
      seam.out[0] = DType::f32;
    } else {
      continue;
    }
    list.push_back(seam);
  }
  return list;
}

std::string to_text(const ValueTypes& types, const OpCase& c) {
  std::string text;
  for (int i = 0; i < c.inputs; ++i) text += (i == 0 ? "" : ",") + std::string(name(types.in[i]));
  return text + " -> " + std::string(name(types.out[0]));
}

double tolerance(const ValueTypes& types) {
  const auto has = [&](DType t) {
    return std::ranges::find(types.in, t) != types.in.end() || std::ranges::find(types.out, t) != types.out.end();
  };
  return has(DType::bf16) ? 8e-3 : has(DType::f16) ? 1e-3 : 2e-5;
}

std::byte* DeviceProblem::allocate(size_t bytes) {
  auto buffer = device_.allocate(bytes);
  if (!buffer) throw DeviceError(buffer.error().message);
  return buffers_.emplace_back(*std::move(buffer))->data();
}

std::byte* DeviceProblem::upload(const void* host, size_t bytes) {
  std::byte* to = allocate(bytes);
  stream_.copy_to_device(to, host, bytes);
  return to;
}

template <class T>
const T* DeviceProblem::upload(const std::vector<T>& host) {
  return reinterpret_cast<const T*>(upload(host.data(), host.size() * sizeof(T)));
}

DeviceProblem::DeviceProblem(OpProblem& problem, Device& device, Stream& stream, const ValueTypes& types)
    : problem_(problem), device_(device), stream_(stream), types_(types) {
  const OpCase& c = problem.case_;
  const int64_t rows = c.rows();
  for (size_t i = 0; i < c.weights.size(); ++i) {
    weights_.push_back({c.weights[i], upload(problem.weight_data_[i].data(), problem.weight_data_[i].size())});
  }
  for (size_t i = 0; i < problem.input_widths_.size(); ++i) {
    const int64_t n = rows * problem.input_widths_[i];
    std::vector<std::byte> narrow(n * byte_size(types.in[i]));
    const auto* x = reinterpret_cast<const float*>(problem.input_data_[i].data());
    if (types.in[i] == DType::i32) {
      std::memcpy(narrow.data(), x, narrow.size());
    } else {
      for (int64_t k = 0; k < n; ++k) store_f32(narrow.data(), types.in[i], k, x[k]);
    }
    in_.push_back({upload(narrow.data(), narrow.size()), types.in[i], {rows, problem.input_widths_[i]}});
    stream.synchronize();  // `narrow` ends here
  }
  for (size_t i = 0; i < problem.output_widths_.size(); ++i) {
    const int64_t n = rows * problem.output_widths_[i];
    out_.push_back({allocate(n * byte_size(types.out[i])), types.out[i], {rows, problem.output_widths_[i]}});
  }
  // The same views as on the host, with pointers into the device's copies.
  problem.bind();
  batch_ = problem.batch_;
  batch_.token_ids = upload(problem.ids_);
  batch_.positions = upload(problem.positions_);
  batch_.row_seq = upload(problem.row_seq_);
  batch_.seq_start = upload(problem.starts_);
  batch_.context_len = upload(problem.contexts_);
  batch_.output_rows = upload(problem.output_rows_);
  ropes_ = {{upload(problem.cos_), upload(problem.sin_)}};
  kv_ = problem.kv_;
  kv_[0].base = upload(problem.cache_.data(), problem.cache_.size());
  kv_[0].block_table = upload(problem.table_);
  batch_.rope = ropes_;
  batch_.kv = kv_;
  stream.synchronize();
}

LaunchArgs DeviceProblem::args(const Kernel& kernel, const Tuning& tuning) {
  Call call = problem_.case_.call();
  call.values = types_;
  const size_t bytes = kernel.workspace == nullptr ? 0 : kernel.workspace(call, tuning, device_.info());
  if (bytes > workspace_bytes_) workspace_ = allocate(bytes), workspace_bytes_ = bytes;
  stream_.fill(workspace_, kNanByte, bytes);
  return {.op = &problem_.case_.op,
          .in = in_,
          .out = out_,
          .weights = weights_,
          .workspace = {workspace_, bytes},
          .batch = &batch_,
          .tuning = tuning};
}

OpProblem::Outcome DeviceProblem::run(const Kernel& kernel, const Tuning& tuning) {
  for (const TensorView& v : out_) stream_.fill(v.data, kNanByte, v.bytes());
  stream_.copy_to_device(kv_[0].base, problem_.cache_.data(), problem_.cache_.size());
  kernel.launch(args(kernel, tuning), stream_);
  OpProblem::Outcome outcome;
  outcome.cache.resize(problem_.cache_.size());
  stream_.copy_to_host(outcome.cache.data(), kv_[0].base, outcome.cache.size());
  for (const TensorView& v : out_) {
    std::vector<std::byte> raw(v.bytes());
    stream_.copy_to_host(raw.data(), v.data, raw.size());
    stream_.synchronize();
    auto& wide = outcome.out.emplace_back(v.shape.elements());
    for (size_t i = 0; i < wide.size(); ++i) {
      wide[i] = v.dtype == DType::i32 ? static_cast<float>(reinterpret_cast<const int32_t*>(raw.data())[i])
                                      : load_f32(raw.data(), v.dtype, i);
    }
  }
  stream_.synchronize();
  return outcome;
}

double DeviceProblem::time(const Kernel& kernel, const Tuning& tuning, double min_seconds, size_t cold_bytes) {
  constexpr size_t kLaunches = 64;  // in a recording: what starting it costs is then a small share
  std::vector<const void*> copies;
  if (!weights_.empty()) {
    const size_t bytes = std::max<size_t>(weights_[0].bytes(), 1);
    copies.push_back(weights_[0].data);
    while (copies.size() < kLaunches && (copies.size() + 1) * bytes < cold_bytes) {
      std::byte* copy = allocate(bytes);
      stream_.copy_on_device(copy, copies[0], bytes);
      copies.push_back(copy);
    }
  }
  LaunchArgs launch = args(kernel, tuning);
  stream_.synchronize();
  check(stream_.begin_recording(), "timing on this device needs recordings");
  for (size_t i = 0; i < kLaunches; ++i) {
    if (!copies.empty()) weights_[0].data = copies[i % copies.size()];
    launch.weights = weights_;
    kernel.launch(launch, stream_);
  }
  const auto recording = stream_.end_recording();
  if (!copies.empty()) weights_[0].data = copies[0];
  double best = std::numeric_limits<double>::infinity(), total = 0;
  for (int i = 0; i < 4 || (total < min_seconds && i < 1000); ++i) {
    const auto start = std::chrono::steady_clock::now();
    recording->replay(stream_);
    stream_.synchronize();
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i > 0) best = std::min(best, s / kLaunches);  // the first warms up
    total += s;
  }
  return best;
}

}  // namespace pinion
