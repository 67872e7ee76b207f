#include "runtime/engine_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "graph/rope_spec.h"

namespace pinion {
namespace {

constexpr size_t kAlign = 64;
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
    g->block_bytes += align(l.token_width() * block_size * byte_size(kv_dtype));
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
  plan.kv = static_cast<size_t>(o.num_blocks) *
            page_bytes(kv_groups(e.graph(), e.manifest().kv_dtype, e.manifest().block_size));
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
  PINION_OK(engine_.read_weights(weights_->data()));
  PINION_TRY(kv_, device_.allocate(std::max<size_t>(kAlign, memory_.kv)));
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

  std::vector<size_t> used(groups_.size(), 0);  // bytes of a page that earlier layers of the group take
  for (const KvLayer& l : g.kv_layers) {
    const size_t group = std::ranges::find(groups_, l.window, &KvGroupInfo::window) - groups_.begin();
    group_of_layer_.push_back(static_cast<int32_t>(group));
    const size_t bytes = l.token_width() * m.block_size * byte_size(m.kv_dtype);
    kv_views_.push_back({.base = kv_->data() + used[group],
                         .block_stride = static_cast<int64_t>(page_bytes_),
                         .v_offset = static_cast<int64_t>(l.latent ? 0 : bytes / 2),
                         .block_size = m.block_size,
                         .dtype = m.kv_dtype});
    used[group] += align(bytes);
  }

  token_ids_.resize(options_.max_num_tokens);
  positions_.resize(options_.max_num_tokens);
  row_seq_.resize(options_.max_num_tokens);
  seq_start_.resize(options_.max_batch_size + 1);
  context_len_.resize(options_.max_batch_size);
  output_rows_.resize(options_.max_outputs);
  tables_.resize(groups_.size());
  for (const RopeSpec& r : g.ropes) {
    rope_cos_.emplace_back(static_cast<size_t>(options_.max_num_tokens) * r.rotary_dim / 2);
    rope_sin_.emplace_back(static_cast<size_t>(options_.max_num_tokens) * r.rotary_dim / 2);
  }
  rope_cache_.resize(g.ropes.size());
  for (size_t r = 0; r < g.ropes.size(); ++r) rope_tables_.push_back({rope_cos_[r].data(), rope_sin_[r].data()});
  return {};
}

uint64_t EngineExecutor::rope_variant(int32_t prompt_length) const {
  uint64_t variant = 0;
  for (const RopeSpec& r : engine_.graph().ropes) variant = variant * 1000003 + pinion::rope_variant(r, prompt_length);
  return variant;
}

void EngineExecutor::bind(const Batch& batch) {
  const Graph& g = engine_.graph();
  const int32_t seqs = static_cast<int32_t>(batch.seqs.size());
  check(seqs >= 1 && seqs <= options_.max_batch_size, "the batch has too many sequences");
  int32_t rows = 0, outputs = 0, max_blocks = 1, max_seq_tokens = 1, max_context = 1;
  for (const BatchSeq& s : batch.seqs) {
    for (const auto& table : s.blocks) max_blocks = std::max(max_blocks, static_cast<int32_t>(table.size()));
  }
  for (size_t group = 0; group < groups_.size(); ++group)
    tables_[group].assign(static_cast<size_t>(seqs) * max_blocks, -1);
  for (int32_t i = 0; i < seqs; ++i) {
    const BatchSeq& s = batch.seqs[i];
    const int32_t n = static_cast<int32_t>(s.tokens.size());
    check(n >= 1 && rows + n <= options_.max_num_tokens, "the batch has too many tokens");
    check(s.outputs >= 0 && s.outputs <= n && outputs + s.outputs <= options_.max_outputs,
          "the batch wants too many rows of logits");
    check(s.blocks.size() == groups_.size(), "a sequence needs a block table per KV group");
    seq_start_[i] = rows;
    context_len_[i] = s.past + n;
    max_seq_tokens = std::max(max_seq_tokens, n);
    max_context = std::max(max_context, s.past + n);
    for (size_t group = 0; group < groups_.size(); ++group) {
      check(static_cast<int64_t>(s.blocks[group].size()) * block_size() >= s.past + n, "a block table is too short");
      std::ranges::copy(s.blocks[group], tables_[group].begin() + static_cast<size_t>(i) * max_blocks);
    }
    for (int32_t k = 0; k < n; ++k) {
      check(s.tokens[k] >= 0 && s.tokens[k] < vocab_size(), "a token is outside the vocabulary");
      token_ids_[rows + k] = s.tokens[k];
      row_seq_[rows + k] = i;
      positions_[rows + k] = s.past + k;
    }
    for (int32_t k = n - s.outputs; k < n; ++k) output_rows_[outputs++] = rows + k;
    for (size_t r = 0; r < g.ropes.size(); ++r) {
      const uint64_t variant = pinion::rope_variant(g.ropes[r], s.rope_length);
      CachedRope& cached = rope_cache_[r];
      if (cached.variant != variant) cached = {variant, rope_frequencies(g.ropes[r], s.rope_length)};
      const auto& f = cached.frequencies;
      const size_t half = f.inverse.size();
      for (int32_t k = 0; k < n; ++k) {
        float* cos = rope_cos_[r].data() + (rows + k) * half;
        float* sin = rope_sin_[r].data() + (rows + k) * half;
        for (size_t j = 0; j < half; ++j) {
          const float angle = static_cast<float>(s.past + k) * f.inverse[j];
          cos[j] = std::cos(angle) * f.attention_factor;
          sin[j] = std::sin(angle) * f.attention_factor;
        }
      }
    }
    rows += n;
  }
  seq_start_[seqs] = rows;
  for (size_t l = 0; l < kv_views_.size(); ++l) {
    kv_views_[l].block_table = tables_[group_of_layer_[l]].data();
    kv_views_[l].max_blocks = max_blocks;
  }
  view_ = {.tokens = rows,
           .seqs = seqs,
           .outputs = outputs,
           .max_seq_tokens = max_seq_tokens,
           .max_context = max_context,
           .token_ids = token_ids_.data(),
           .positions = positions_.data(),
           .row_seq = row_seq_.data(),
           .seq_start = seq_start_.data(),
           .context_len = context_len_.data(),
           .output_rows = output_rows_.data(),
           .rope = rope_tables_,
           .kv = kv_views_};
}

std::span<const float> EngineExecutor::forward(const Batch& batch) {
  bind(batch);
  const Graph& g = engine_.graph();
  const Program& program = program_for(engine_.programs(), view_.tokens);
  const auto& kernels = kernels_[&program - engine_.programs().data()];
  auto tensor = [&](Value v) {
    const ValueSpec& spec = g.spec(v);
    return TensorView{slot_base_[engine_.arena().slot_of[v.id]],
                      spec.dtype,
                      {spec.rows == Rows::tokens ? view_.tokens : view_.outputs, spec.width}};
  };
  std::array<TensorView, 4> in, out;
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const Node& n = g.nodes()[i];
    for (size_t k = 0; k < n.in.size(); ++k) in[k] = tensor(n.in[k]);
    for (size_t k = 0; k < n.out.size(); ++k) out[k] = tensor(n.out[k]);
    if (out[0].shape[0] > 0) {  // a step without outputs skips the head
      kernels[i]->launch({&n.op,
                          {in.data(), n.in.size()},
                          {out.data(), n.out.size()},
                          node_weights_[i],
                          {workspace_->data(), memory_.workspace},
                          &view_,
                          program.steps[i].tuning},
                         *stream_);
    }
    if (observer_) {
      stream_->synchronize();
      observer_(i, {out.data(), n.out.size()});
    }
  }
  stream_->synchronize();
  return {tensor(g.logits).as<float>(), static_cast<size_t>(view_.outputs) * g.vocab_size};
}

void EngineExecutor::copy_block(int32_t from, int32_t to) {
  check(from >= 0 && to >= 0 && from < options_.num_blocks && to < options_.num_blocks, "a block is outside the pool");
  std::memcpy(kv_->data() + to * page_bytes_, kv_->data() + from * page_bytes_, page_bytes_);
}

}  // namespace pinion
