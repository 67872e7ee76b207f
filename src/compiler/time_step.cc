#include "compiler/time_step.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "compiler/compiler.h"
#include "compiler/timing.h"

namespace pinion {
namespace {

constexpr size_t kLayers = 4;       // of a window: what stands at its ends counts for little then
constexpr int32_t kContext = 1024;  // tokens of a sequence
constexpr double kBudget = 0.002;   // seconds of replays that one measurement takes
constexpr int kMeasurements = 3;

bool can_run(const Node& node) {
  switch (kind(node.op)) {
    case OpKind::attention:
      return node.in.size() == 1;  // its keys are a RopeKvWrite's
    case OpKind::linear:
    case OpKind::rope_kv_write:
    case OpKind::rms_norm:
    case OpKind::add_rms_norm:
    case OpKind::layer_norm:
    case OpKind::add:
    case OpKind::act:
    case OpKind::gated_act:
      return true;
    default:
      return false;
  }
}

}  // namespace

struct StepTimer::Step {
  int32_t rows = 0;
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::vector<std::byte*> slots;
  ArenaPlan arena;
  std::vector<RopeTable> ropes;
  std::vector<KvView> kv;
  BatchView batch;
};

StepTimer::StepTimer(const Graph& graph, std::span<const PackedWeight> weights,
                     std::span<const std::vector<int32_t>> node_weights, const Backend& backend, Device& device,
                     DType kv_dtype, int32_t block_size)
    : graph_(graph),
      weights_(weights),
      node_weights_(node_weights),
      backend_(backend),
      device_(device),
      kv_dtype_(kv_dtype),
      block_size_(block_size),
      stream_(device.make_stream()) {}

StepTimer::~StepTimer() = default;

std::unique_ptr<StepTimer> StepTimer::create(const Graph& graph, std::span<const PackedWeight> weights,
                                             std::span<const std::vector<int32_t>> node_weights, const Backend& backend,
                                             Device& device, DType kv_dtype, int32_t block_size) {
  if (device.host_visible()) return nullptr;
  std::vector<size_t> attention;
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    if (std::holds_alternative<Attention>(graph.nodes()[i].op)) attention.push_back(i);
  }
  if (attention.size() < 2) return nullptr;
  auto timer =
      std::unique_ptr<StepTimer>(new StepTimer(graph, weights, node_weights, backend, device, kv_dtype, block_size));
  // From behind one attention to another: the layers in the middle, where a model is most like itself.
  const size_t layers = std::min(kLayers, attention.size() - 1), at = (attention.size() - 1 - layers) / 2;
  timer->first_ = attention[at] + 1, timer->end_ = attention[at + layers] + 1;
  for (size_t i = timer->first_; i < timer->end_; ++i) {
    if (!can_run(graph.nodes()[i])) return nullptr;
    for (const int32_t id : node_weights[i]) {
      if (weights[id].spec.layout != Layout::row_major) return nullptr;
    }
  }
  return timer;
}

Result<std::unique_ptr<Buffer>> StepTimer::zeros(size_t bytes) {
  PINION_TRY(auto buffer, device_.allocate(std::max<size_t>(bytes, 64)));
  stream_->fill(buffer->data(), 0, buffer->size());
  return buffer;
}

Status StepTimer::fill_weights() {
  if (!views_.empty()) return {};
  std::map<std::string, size_t> used;
  for (size_t i = first_; i < end_; ++i) {
    std::vector<WeightView> views;
    for (const int32_t id : node_weights_[i]) {
      const WeightSpec& spec = weights_[id].spec;
      const std::string shape = std::to_string(spec.rows) + " x " + std::to_string(spec.cols) + " " + str(spec);
      auto& copies = copies_[shape];
      const size_t bytes = std::max<size_t>(64, spec.bytes()), turn = used[shape]++;
      const size_t wanted = spec.rows == 1 ? 1 : std::clamp<size_t>(kColdBytes / bytes + 1, 1, kLayers);
      if (copies.size() < wanted) {
        PINION_TRY(auto copy, timing_weight(spec, device_, *stream_));
        copies.push_back(std::move(copy));
      }
      views.push_back({spec, copies[turn % copies.size()]->data()});
    }
    views_.push_back(std::move(views));
  }
  return {};
}

Status StepTimer::bind(int32_t rows) {
  if (step_ != nullptr && step_->rows == rows) return {};
  step_.reset();
  auto step = std::make_unique<Step>();
  step->rows = rows;
  const auto up = [&](const std::vector<int32_t>& v) -> Result<int32_t*> {
    PINION_TRY(auto buffer, device_.allocate(std::max<size_t>(64, v.size() * 4)));
    PINION_TRY(auto host, device_.allocate_pinned(std::max<size_t>(64, v.size() * 4)));
    std::memcpy(host->data(), v.data(), v.size() * 4);
    stream_->copy_to_device(buffer->data(), host->data(), v.size() * 4);
    stream_->synchronize();
    step->buffers.push_back(std::move(buffer));
    return reinterpret_cast<int32_t*>(step->buffers.back()->data());
  };
  const auto room = [&](size_t bytes) -> Result<std::byte*> {
    PINION_TRY(auto buffer, zeros(bytes));
    step->buffers.push_back(std::move(buffer));
    return step->buffers.back()->data();
  };

  step->arena = plan_memory(graph_);
  for (const ArenaSlot& s : step->arena.slots) {
    PINION_TRY(std::byte* const at, room(static_cast<size_t>(rows) * (s.per_token + s.per_output)));
    step->slots.push_back(at);
  }
  for (const RopeSpec& r : graph_.ropes) {
    PINION_TRY(std::byte* const angles, room(static_cast<size_t>(rows) * (r.rotary_dim / 2) * 4));
    step->ropes.push_back({reinterpret_cast<float*>(angles), reinterpret_cast<float*>(angles)});
  }
  const int32_t blocks = (kContext + 1 + block_size_ - 1) / block_size_;  // of a sequence
  std::vector<int32_t> table(static_cast<size_t>(rows) * blocks), row_seq(rows), start(rows + 1);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  for (int32_t i = 0; i <= rows; ++i) start[i] = i;
  std::copy_n(start.begin(), rows, row_seq.begin());
  PINION_TRY(int32_t* const table_at, up(table));
  // Layers have pages of their own as long as the caches could hold one layer's for the next.
  std::map<size_t, std::vector<std::byte*>> pages;  // by the bytes of one
  for (size_t l = 0; l < graph_.kv_layers.size(); ++l) {
    const KvLayer& layer = graph_.kv_layers[l];
    const size_t page = layer.token_bytes(kv_dtype_) * block_size_;
    const size_t bytes = table.size() * page, wanted = std::clamp<size_t>(kColdBytes / bytes + 1, 1, kLayers);
    auto& alike = pages[page];
    if (alike.size() < wanted) {
      PINION_TRY(std::byte* const at, room(bytes));
      alike.push_back(at);
    }
    step->kv.push_back({.base = alike[l % alike.size()],
                        .block_stride = static_cast<int64_t>(page),
                        .v_offset = static_cast<int64_t>(page / 2),
                        .block_size = block_size_,
                        .dtype = kv_dtype_,
                        .k_scale = layer.k_scale,
                        .v_scale = layer.v_scale,
                        .block_table = table_at,
                        .max_blocks = blocks});
  }
  PINION_TRY(int32_t* const row_seq_at, up(row_seq));
  PINION_TRY(int32_t* const start_at, up(start));
  PINION_TRY(int32_t* const positions_at, up(std::vector<int32_t>(rows, kContext)));
  PINION_TRY(int32_t* const contexts_at, up(std::vector<int32_t>(rows, kContext + 1)));
  step->batch = {.tokens = rows,
                 .seqs = rows,
                 .outputs = rows,
                 .max_seq_tokens = 1,
                 .max_context = 2 * kContext,
                 .token_ids = positions_at,
                 .positions = positions_at,
                 .row_seq = row_seq_at,
                 .seq_start = start_at,
                 .context_len = contexts_at,
                 .output_rows = row_seq_at,
                 .rope = step->ropes,
                 .kv = step->kv};
  stream_->synchronize();
  step_ = std::move(step);
  return {};
}

Result<double> StepTimer::time(std::span<const KernelChoice> choices, int32_t rows) {
  PINION_OK(fill_weights());
  PINION_OK(bind(rows));
  const Step& s = *step_;
  const auto tensor = [&](Value v) {
    const ValueSpec& spec = graph_.spec(v);
    return TensorView{s.slots[s.arena.slot_of[v.id]], spec.dtype, {rows, spec.width}};
  };
  std::vector<const Kernel*> kernels;
  size_t most = 64;
  for (size_t i = first_; i < end_; ++i) {
    const Node& n = graph_.nodes()[i];
    const Kernel* k = find_kernel(backend_, choices[i].kernel);
    check(k != nullptr, "a kernel that was chosen is one of the backend's");
    std::vector<WeightSpec> specs;
    for (const WeightView& w : views_[i - first_]) specs.push_back(w);
    const Call call{.op = &n.op,
                    .rows = rows,
                    .seqs = rows,
                    .context = 2 * kContext,
                    .inputs = static_cast<int>(n.in.size()),
                    .weights = specs,
                    .values = value_types(graph_, n),
                    .kv_dtype = kv_dtype_};
    if (k->workspace != nullptr) most = std::max(most, k->workspace(call, choices[i].tuning, device_.info()));
    kernels.push_back(k);
  }
  if (workspace_ == nullptr || workspace_->size() < most) {
    workspace_.reset();
    PINION_TRY(workspace_, zeros(most));
  }
  const auto launch_all = [&] {
    std::array<TensorView, 4> in, out;
    for (size_t i = first_; i < end_; ++i) {
      const Node& n = graph_.nodes()[i];
      for (size_t k = 0; k < n.in.size(); ++k) in[k] = tensor(n.in[k]);
      for (size_t k = 0; k < n.out.size(); ++k) out[k] = tensor(n.out[k]);
      kernels[i - first_]->launch({.op = &n.op,
                                   .in = {in.data(), n.in.size()},
                                   .out = {out.data(), n.out.size()},
                                   .weights = views_[i - first_],
                                   .workspace = {workspace_->data(), most},
                                   .batch = &s.batch,
                                   .tuning = choices[i].tuning},
                                  *stream_);
    }
  };
  launch_all();  // what a library sets up at its first call is no part of a recording
  stream_->synchronize();
  check(stream_->begin_recording(), "timing on a device needs recordings");
  launch_all();
  const auto recording = stream_->end_recording();
  const auto replay = [&](int times) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) recording->replay(*stream_);
    stream_->synchronize();
    return seconds_since(start) / times;
  };
  const int times = std::clamp(static_cast<int>(kBudget / std::max(replay(2), 1e-6)), 2, 100);
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kMeasurements; ++i) best = std::min(best, replay(times));
  return 1e6 * best;
}

}  // namespace pinion
