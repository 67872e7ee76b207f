#include "runtime/engine_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "graph/rope_spec.h"
#include "runtime/weight_upload.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

constexpr size_t kAlign = 64;
constexpr int64_t kMostCounted = int64_t{1} << 22;  // tokens of all histories together: 48 MiB
size_t align(size_t n) {
  return (n + kAlign - 1) / kAlign * kAlign;
}

const Program& program_for(std::span<const Program> programs, int64_t tokens) {
  for (const Program& p : programs) {
    if (tokens <= p.tokens) return p;
  }
  return programs.back();  // past the last bucket its kernels serve
}

// The call a node makes at the limits, to size workspaces: kernels promise that these grow with rows and sequences.
Call call_at(const Engine& e, const Node& node, std::span<const WeightSpec> specs, const ExecutorOptions& o) {
  const bool outputs = !node.in.empty() && e.graph().spec(node.in[0]).rows == Rows::outputs;
  return {.op = &node.op,
          .rows = outputs ? o.max_outputs : o.max_num_tokens,
          .seqs = o.max_batch_size,
          .context = o.max_seq_len,
          .inputs = static_cast<int>(node.in.size()),
          .weights = specs,
          .values = value_types(e.graph(), node),
          .kv_dtype = e.manifest().kv_dtype,
          .deterministic = e.manifest().deterministic};
}

void fill_limits(const Engine& e, ExecutorOptions& o) {
  if (o.max_seq_len == 0) o.max_seq_len = static_cast<int32_t>(e.graph().context_length);
  if (o.max_outputs == 0) o.max_outputs = o.max_batch_size;
  o.max_outputs = std::min(o.max_outputs, o.max_num_tokens);
  if (o.num_blocks == 0) {
    const auto groups = kv_groups(e.graph(), e.manifest().kv_dtype, e.manifest().block_size);
    o.num_blocks =
        static_cast<int32_t>(blocks_needed(groups, e.manifest().block_size, o.max_batch_size, o.max_seq_len));
  }
}

// The head: the first matrix over the rows of outputs. What follows it scales and caps the logits.
size_t find_head(const Graph& g) {
  const auto is_head = [&](const Node& n) {
    return std::holds_alternative<Linear>(n.op) && g.spec(n.in[0]).rows == Rows::outputs;
  };
  return static_cast<size_t>(std::ranges::find_if(g.nodes(), is_head) - g.nodes().begin());
}

// Adds the time of a scope to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  ~Stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& sum_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

size_t page_bytes(std::span<const KvGroupInfo> groups) {
  size_t most = 0;
  for (const KvGroupInfo& g : groups) most = std::max(most, g.block_bytes);
  return align(most);
}

}  // namespace

std::vector<KvGroupInfo> kv_groups(const Graph& graph, DType kv_dtype, int32_t block_size) {
  std::vector<KvGroupInfo> groups;
  for (const KvLayer& l : graph.kv_layers) {
    auto g = std::ranges::find(groups, l.window, &KvGroupInfo::window);
    if (g == groups.end()) g = groups.insert(groups.end(), KvGroupInfo{.window = l.window});
    ++g->layers;
    g->block_bytes += align(l.token_bytes(kv_dtype) * block_size);
  }
  return groups;
}

int64_t blocks_needed(std::span<const KvGroupInfo> groups, int32_t block_size, int64_t batch, int64_t seq_len) {
  int64_t blocks = 0;
  for (size_t i = 0; i < groups.size(); ++i) blocks += (seq_len + block_size - 1) / block_size;
  return std::min<int64_t>(batch * blocks, int64_t{1} << 30);
}

MemoryPlan plan_load(const Engine& e, const Backend& backend, const DeviceInfo& device, const ExecutorOptions& given) {
  ExecutorOptions o = given;
  fill_limits(e, o);
  MemoryPlan plan;
  plan.weights = e.data_bytes();
  plan.arena = e.arena().bytes(o.max_num_tokens, o.max_outputs);
  const size_t page = page_bytes(kv_groups(e.graph(), e.manifest().kv_dtype, e.manifest().block_size));
  plan.kv = static_cast<size_t>(o.num_blocks) * page;
  plan.host = static_cast<size_t>(o.host_blocks) * page;
  for (const Program& p : e.programs()) {
    for (size_t i = 0; i < p.steps.size(); ++i) {
      const Kernel* k = find_kernel(backend, p.steps[i].kernel);
      if (!k || !k->workspace) continue;
      std::vector<WeightSpec> specs;
      for (int32_t id : e.node_weights(i)) specs.push_back(e.weights()[id].spec);
      plan.workspace =
          std::max(plan.workspace, k->workspace(call_at(e, e.graph().nodes()[i], specs, o), p.steps[i].tuning, device));
    }
  }
  return plan;
}

EngineExecutor::EngineExecutor(const Engine& engine, const Backend& backend, Device& device)
    : engine_(engine), backend_(backend), device_(device), stream_(device.make_stream()) {}

Result<std::unique_ptr<EngineExecutor>> EngineExecutor::create(const Engine& engine, const Backend& backend,
                                                               Device& device, ExecutorOptions options) {
  auto executor = std::unique_ptr<EngineExecutor>(new EngineExecutor(engine, backend, device));
  PINION_OK(executor->load(options));
  return executor;
}

Status EngineExecutor::load(ExecutorOptions options) {
  const Graph& g = engine_.graph();
  const Manifest& m = engine_.manifest();
  if (options.max_seq_len > g.context_length) {
    return fail(Errc::invalid_argument,
                fmt::format("{} tokens are more than the model's context of {}", options.max_seq_len, g.context_length),
                "--max_seq_len", "choose a smaller number");
  }
  if (options.max_batch_size < 1 || options.max_num_tokens < 1 || options.max_seq_len < 0) {
    return fail(Errc::invalid_argument, "the limits must be at least 1",
                "--max_batch_size, --max_num_tokens, --max_seq_len");
  }
  fill_limits(engine_, options);
  options_ = options;
  groups_ = pinion::kv_groups(g, m.kv_dtype, m.block_size);
  page_bytes_ = page_bytes(groups_);
  head_ = find_head(g);
  head_gives_logits_ = head_ < g.nodes().size() && g.nodes()[head_].out[0] == g.logits;

  for (const Program& p : engine_.programs()) {
    std::vector<const Kernel*> row;
    for (size_t i = 0; i < p.steps.size(); ++i) {
      const Kernel* k = find_kernel(backend_, p.steps[i].kernel);
      if (!k || k->op != kind(g.nodes()[i].op)) {
        return fail(Errc::unsupported, fmt::format("this Pinion has no kernel \"{}\"", p.steps[i].kernel),
                    engine_.dir().string(), "build the engine again");
      }
      row.push_back(k);
    }
    kernels_.push_back(std::move(row));
  }

  memory_ = plan_load(engine_, backend_, device_.info(), options_);
  PINION_TRY(weights_, device_.allocate(std::max<size_t>(kAlign, memory_.weights)));
  PINION_OK(device_.host_visible() ? engine_.read_weights(weights_->data())
                                   : upload_weights(engine_, device_, *stream_, weights_->data()));
  PINION_TRY(kv_, device_.allocate(std::max<size_t>(kAlign, memory_.kv)));
  if (options_.host_blocks > 0) {
    auto host = device_.allocate_pinned(memory_.host);
    if (!host) {
      return fail(Errc::exhausted, "the KV cache's host tier does not fit: " + host.error().message,
                  "--kv_cache_host_memory_bytes", "give fewer bytes, or free memory");
    }
    host_kv_ = *std::move(host);
    order_ = dynamic_cast<StreamOrderDevice*>(&device_);
    if (order_ != nullptr) copies_ = device_.make_stream();
  }
  PINION_TRY(arena_, device_.allocate(std::max<size_t>(kAlign, memory_.arena)));
  PINION_TRY(workspace_, device_.allocate(std::max<size_t>(kAlign, memory_.workspace)));

  std::byte* base = arena_->data();
  for (const ArenaSlot& s : engine_.arena().slots) {
    slot_base_.push_back(base);
    base += align(s.per_token * options_.max_num_tokens + s.per_output * options_.max_outputs);
  }
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    std::vector<WeightView> views;
    for (int32_t id : engine_.node_weights(i)) {
      const PackedWeight& w = engine_.weights()[id];
      views.push_back({w.spec, weights_->data() + w.offset});
    }
    node_weights_.push_back(std::move(views));
  }

  std::vector<KvView> kv_views;
  std::vector<int32_t> group_of_layer;
  std::vector<size_t> used(groups_.size(), 0);  // bytes of a page that earlier layers of the group take
  for (const KvLayer& l : g.kv_layers) {
    const size_t group = std::ranges::find(groups_, l.window, &KvGroupInfo::window) - groups_.begin();
    group_of_layer.push_back(static_cast<int32_t>(group));
    const size_t bytes = l.token_bytes(m.kv_dtype) * m.block_size;
    kv_views.push_back({.base = kv_->data() + used[group],
                        .block_stride = static_cast<int64_t>(page_bytes_),
                        .v_offset = static_cast<int64_t>(l.latent ? 0 : bytes / 2),
                        .block_size = m.block_size,
                        .dtype = m.kv_dtype,
                        .k_scale = l.k_scale,
                        .v_scale = l.v_scale});
    used[group] += align(bytes);
  }

  PINION_TRY(step_, StepData::create(g, kv_views, group_of_layer, groups_.size(), m.block_size, options_, device_));
  if (!device_.host_visible()) {
    PINION_TRY(logits_, device_.allocate_pinned(static_cast<size_t>(options_.max_outputs) * g.vocab_size * 4));
    if (sampling_ = dynamic_cast<SamplingDevice*>(&device_); sampling_ != nullptr) PINION_OK(make_room_to_sample());
    PINION_OK(record_decode_steps());
  }
  return {};
}

Status EngineExecutor::make_room_to_sample() {
  const size_t rows = 2 * static_cast<size_t>(options_.max_outputs);
  PINION_TRY(tokens_, device_.allocate(rows * sizeof(int32_t)));
  PINION_TRY(tokens_host_, device_.allocate_pinned(rows * sizeof(int32_t)));
  PINION_TRY(logprobs_host_, device_.allocate_pinned(rows * (1 + kMaxLogprobs) * sizeof(LogprobEntry)));
  step_->read_earlier_tokens_at(reinterpret_cast<const int32_t*>(tokens_->data()));
  // As much as every sequence may ever need, but no more than kMostCounted: it is for those with penalties alone.
  const int64_t longest = 1 + std::min<int64_t>(options_.max_seq_len, engine_.graph().vocab_size);
  room_ = {
      .edits = StepData::most_edits(options_),
      .history = static_cast<int32_t>(std::min(options_.max_batch_size * longest, std::max(kMostCounted, longest)))};
  PINION_TRY(edited_, device_.allocate(room_.edits * sizeof(float)));
  PINION_TRY(histories_, device_.allocate(room_.history * sizeof(TokenCount)));
  PINION_TRY(penalized_, device_.allocate(room_.history * sizeof(float)));
  return {};
}

uint64_t EngineExecutor::rope_variant(int32_t prompt_length) const {
  uint64_t variant = 0;
  for (const RopeSpec& r : engine_.graph().ropes) variant = variant * 1000003 + pinion::rope_variant(r, prompt_length);
  return variant;
}

TensorView EngineExecutor::tensor(Value v) const {
  const ValueSpec& spec = engine_.graph().spec(v);
  const BatchView& view = step_->view();
  return {slot_base_[engine_.arena().slot_of[v.id]],
          spec.dtype,
          {spec.rows == Rows::tokens ? view.tokens : view.outputs, spec.width}};
}

int32_t EngineExecutor::hidden_size() const {
  const auto& nodes = engine_.graph().nodes();
  return head_ < nodes.size() ? static_cast<int32_t>(engine_.graph().spec(nodes[head_].in[0]).width) : 0;
}

void EngineExecutor::synchronize() {
  const Stopwatch waiting(waited_seconds_);
  stream_->synchronize();
}

void EngineExecutor::keep_hidden() {
  const TensorView rows = tensor(engine_.graph().nodes()[head_].in[0]);
  hidden_.resize(static_cast<size_t>(rows.shape[0] * rows.shape[1]));
  if (hidden_.empty()) return;
  hidden_bytes_.resize(rows.bytes());
  stream_->copy_to_host(hidden_bytes_.data(), rows.data, hidden_bytes_.size());
  synchronize();
  for (size_t i = 0; i < hidden_.size(); ++i) {
    hidden_[i] = load_f32(hidden_bytes_.data(), rows.dtype, static_cast<int64_t>(i));
  }
}

void EngineExecutor::launch_all(const Batch* batch) {
  const Graph& g = engine_.graph();
  const BatchView& view = step_->view();
  const Program& program = program_for(engine_.programs(), view.tokens);
  const auto& kernels = kernels_[&program - engine_.programs().data()];
  std::array<TensorView, 4> in, out;
  launches_ = 0;
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const Node& n = g.nodes()[i];
    if (i == head_ && batch != nullptr && batch->hidden) {
      keep_hidden();  // now: their memory is another value's later
      if (!batch->logits) return;
    }
    for (size_t k = 0; k < n.in.size(); ++k) in[k] = tensor(n.in[k]);
    for (size_t k = 0; k < n.out.size(); ++k) out[k] = tensor(n.out[k]);
    if (out[0].shape[0] > 0) {  // a step without outputs skips the head
      const LaunchArgs args{&n.op,
                            {in.data(), n.in.size()},
                            {out.data(), n.out.size()},
                            node_weights_[i],
                            {workspace_->data(), memory_.workspace},
                            &view,
                            program.steps[i].tuning};
      i == head_ ? launch_head(*kernels[i], args) : kernels[i]->launch(args, *stream_);
      ++launches_;
    }
    if (observer_ || editor_) show(i, {out.data(), n.out.size()});
  }
}

// Observer and editor work on the host.
void EngineExecutor::show(size_t node, std::span<TensorView> outputs) {
  stream_->synchronize();
  const auto call = [&] {
    if (observer_) observer_(node, outputs);
    return editor_ && editor_(node, outputs);
  };
  if (device_.host_visible()) {
    (void)call();
    return;
  }
  std::vector<std::vector<std::byte>> copies;
  std::vector<void*> on_device;
  for (TensorView& v : outputs) {
    on_device.push_back(v.data);
    auto& copy = copies.emplace_back(v.bytes());
    stream_->copy_to_host(copy.data(), v.data, copy.size());
    v.data = copy.data();
  }
  stream_->synchronize();
  if (!call()) return;
  for (size_t i = 0; i < outputs.size(); ++i) stream_->copy_to_device(on_device[i], copies[i].data(), copies[i].size());
  stream_->synchronize();
}

// Rows whose token is their largest logit need not be stored, unless what follows the head changes them.
void EngineExecutor::launch_head(const Kernel& kernel, const LaunchArgs& args) {
  found_largest_ =
      sampling_ != nullptr && head_gives_logits_ && sampling_->launch_head(kernel, args, step_->largest(), *stream_);
  if (!found_largest_) kernel.launch(args, *stream_);
}

// From the rows of logits of the bound step to tokens, where the next step and the host find them.
void EngineExecutor::sample() {
  sampling_->sample_rows(tensor(engine_.graph().logits).as<float>(),
                         found_largest_ ? step_->largest() : LargestLogits{}, step_->sampling(),
                         {.edits = step_->edits(),
                          .edited = reinterpret_cast<float*>(edited_->data()),
                          .histories = reinterpret_cast<TokenCount*>(histories_->data()),
                          .penalized = reinterpret_cast<float*>(penalized_->data())},
                         {.tokens = reinterpret_cast<int32_t*>(tokens_->data()),
                          .host = reinterpret_cast<int32_t*>(tokens_host_->data()),
                          .logprobs = reinterpret_cast<LogprobEntry*>(logprobs_host_->data()),
                          .slot = step_->slot_on_device(),
                          .stride = options_.max_outputs},
                         step_->view().outputs, engine_.graph().vocab_size, *stream_);
  ++launches_;
}

size_t EngineExecutor::run(const Batch& batch, const StepSampling& sampling) {
  StepSizes sizes = step_->sizes(batch);
  const auto outputs = static_cast<size_t>(sizes.outputs);
  const RecordedStep* recorded = recorded_step(batch);
  if (recorded != nullptr) sizes = recorded->sizes;
  step_->bind(batch, sizes, sampling, observer_ != nullptr || editor_ != nullptr);
  if (recorded == nullptr) stream_->upload(step_->upload());
  begun_ = stream_->mark();
  if (recorded != nullptr) {
    recorded->recording->replay(*stream_, step_->upload());
    launches_ = recorded->launches;
  } else {
    std::optional<Stopwatch> computing;  // where the host's threads are the device, a launch is the work itself
    if (device_.host_visible()) computing.emplace(waited_seconds_);
    launch_all(&batch);
    computing.reset();
    if (!sampling.rows.empty()) sample();
  }
  return batch.logits ? outputs : 0;
}

std::span<const float> EngineExecutor::forward(const Batch& batch) {
  check(flights_.empty(), "steps were issued and not collected");
  check(batch.logits || batch.hidden, "a batch that wants nothing");
  check(!batch.hidden || hidden_size() > 0, "this graph has no head to take the hidden states from");
  const size_t n = run(batch, {}) * engine_.graph().vocab_size;
  const TensorView logits = tensor(engine_.graph().logits);
  const float* rows = logits.as<float>();
  if (logits_) {
    rows = reinterpret_cast<const float*>(logits_->data());
    stream_->copy_to_host(logits_->data(), logits.data, n * sizeof(float));
  }
  synchronize();
  return {rows, n};
}

void EngineExecutor::issue(const Batch& batch, const StepSampling& sampling) {
  check(sampling_ != nullptr, "this device does not sample");
  check(flights_.size() < 2, "two steps are under way");
  for (const HistoryWrite& h : sampling.histories) {
    check(h.at >= 0 && h.at + std::ssize(h.counts) <= room_.history, "a history lies outside of its memory");
    stream_->copy_to_device(histories_->data() + h.at * sizeof(TokenCount), h.counts.data(),
                            h.counts.size() * sizeof(TokenCount));
  }
  const size_t n = run(batch, sampling);
  check(sampling.rows.size() == n, "every row of logits needs its sampling");
  flights_.push_back({begun_, stream_->mark(), step_->slot(), n});
}

std::span<const int32_t> EngineExecutor::collect() {
  check(!flights_.empty(), "no step is under way");
  const Flight flight = flights_.front();
  flights_.erase(flights_.begin());
  {
    const Stopwatch waiting(waited_seconds_);
    stream_->wait(flight.end);
  }
  device_seconds_ += stream_->seconds_between(flight.begin, flight.end);
  const auto* tokens = reinterpret_cast<const int32_t*>(tokens_host_->data());
  collected_ = flight.slot;
  return {tokens + static_cast<size_t>(flight.slot) * options_.max_outputs, flight.rows};
}

std::span<const LogprobEntry> EngineExecutor::logprobs(size_t row) const {
  constexpr size_t kEntries = 1 + kMaxLogprobs;
  const auto* all = reinterpret_cast<const LogprobEntry*>(logprobs_host_->data());
  return {all + (static_cast<size_t>(collected_) * options_.max_outputs + row) * kEntries, kEntries};
}

void EngineExecutor::move_blocks(std::span<const BlockCopy> copies, bool awaited) {
  Stream& stream = copies_ ? *copies_ : *stream_;
  bool ordered = order_ == nullptr;
  for (const BlockCopy& c : copies) {
    check(c.block >= 0 && c.block < options_.num_blocks && c.slot >= 0 && c.slot < options_.host_blocks,
          "a copy outside of the pool or the host tier");
    std::byte* page = kv_->data() + static_cast<size_t>(c.block) * page_bytes_;
    std::byte* slot = host_kv_->data() + static_cast<size_t>(c.slot) * page_bytes_;
    const size_t bytes = groups_[c.group].block_bytes;
    if (c.to_host) {  // no step that runs writes it: it was registered when the step that did had ended
      stream.copy_to_host(slot, page, bytes);
      continue;
    }
    // A step that runs may still read or write the page, for a sequence that has lost it.
    if (!std::exchange(ordered, true)) order_->run_after(stream, *stream_);
    stream.copy_to_device(page, slot, bytes);
  }
  if (awaited && order_ != nullptr) order_->run_after(*stream_, stream);
}

void EngineExecutor::copy_block(int32_t from, int32_t to) {
  check(from >= 0 && to >= 0 && from < options_.num_blocks && to < options_.num_blocks, "a block is outside the pool");
  stream_->copy_on_device(kv_->data() + to * page_bytes_, kv_->data() + from * page_bytes_, page_bytes_);
}

}  // namespace pinion
