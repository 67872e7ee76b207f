// pinion plan: will a model fit a device, and how fast can it be at best. For the CPU the numbers are those of the load
// itself (executor_options, plan_load); for GPUs, which this build cannot run, they are computed from the graph.
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <set>

#include "backend/cpu/ceilings.h"
#include "cli/model.h"
#include "cli/shard_checkpoint.h"
#include "cli/verbs.h"
#include "compiler/packed_weights.h"

namespace pinion::cli {
namespace {

struct Gpu {
  const char* name;
  int count;
  double gib, gbps;  // of one device, from its data sheet
};
constexpr std::array kGpus{Gpu{"rtx4090", 1, 24, 1008}, Gpu{"rtx5090", 1, 32, 1792}, Gpu{"2x4090", 2, 24, 1008},
                           Gpu{"a100", 1, 80, 2039},    Gpu{"h100", 1, 80, 3350},    Gpu{"8xh100", 8, 80, 3350},
                           Gpu{"h200", 1, 141, 4800},   Gpu{"b200", 1, 180, 8000}};
constexpr double kGpuOverhead = 0.75 * (1 << 30);  // context, code and libraries of one process: assumed
constexpr double kGpuUsable = 0.95;                // of the data sheet's memory: what a driver leaves free, assumed

struct Args {
  ModelArgs model;
  std::string gpu = "cpu";
  int tp_size = 0;  // 0: the device's count
  bool json = false;
};

// Per device.
struct Need {
  double weights = 0, kv = 0, arena = 0, workspace = 0, overhead = 0;
  double host = 0;             // for the KV cache's host tier, of the host's memory
  bool host_counts = false;    // which is the memory that all is taken of
  double weights_read = 0;     // a step reads all but an embedding that only looks up rows, and its experts:
  double experts = 0;          // of their bytes the expected part for so many rows,
  double experts_chosen = 0;   // when each row chooses this part
  double kv_per_sequence = 0;  // pages for max_seq_len tokens
  double kv_read = 0;          // of one sequence's step at max_seq_len
  double kv_limit = std::numeric_limits<double>::infinity();  // --kv_cache_max_tokens
  double kv_room = 0;                                         // what the pages may take at most
  int64_t max_batch_size = 0, max_num_tokens = 0, max_seq_len = 0;
  double memory = 0, gbps = 0;
  int devices = 1;
  DType dtype = DType::bf16, kv_dtype = DType::bf16;
  bool exact = false;
  std::map<std::string, double> kinds;  // weights' bytes by how they are held, where an engine says it
  std::string quantized;                // how a quantised checkpoint's weights are counted
  double total() const { return weights + kv + arena + workspace + overhead + (host_counts ? host : 0); }
};

double align64(double bytes) {
  return std::ceil(bytes / 64) * 64;
}

size_t resident_bytes() {  // anonymous memory of this process: mapped files do not count
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("RssAnon:")) return std::strtoull(line.c_str() + 8, nullptr, 10) * 1024;
  }
  return 0;
}

double kv_read_bytes(const std::vector<KvLayer>& layers, DType dtype, int64_t context, int tp) {
  double bytes = 0;
  for (const KvLayer& l : layers) {
    const int64_t seen = l.window > 0 ? std::min<int64_t>(context, l.window) : context;
    const int64_t heads = std::max<int64_t>(1, l.kv_heads / tp);
    bytes += static_cast<double>(KvLayer{heads, l.head_dim, 0, l.latent}.token_bytes(dtype) * seen);
  }
  return bytes;
}

double page_bytes(std::span<const KvGroupInfo> groups) {
  size_t most = 1;
  for (const KvGroupInfo& g : groups) most = std::max(most, g.block_bytes);
  return align64(static_cast<double>(most));
}

// What the graph alone says, for `tp` ranks: weights as the packed file holds them, KV pages, the arena.
Result<Need> need_of_graph(const Checkpoint& checkpoint, const Args& a, int tp) {
  PINION_TRY(BuildOptions options, build_options(a.model.build));
  PINION_TRY(Model model, build_model(checkpoint.config(), checkpoint.config_path().string(), options.overrides));
  Need n;
  n.dtype = options.dtype.value_or(model.config.dtype);
  n.kv_dtype = options.kv_dtype.value_or(n.dtype);
  PINION_TRY(const std::vector<RankPlan> plans, plan_ranks(model, tp, 1));
  PINION_TRY(const QuantizedCheckpoint quantized, QuantizedCheckpoint::open(checkpoint));
  if (quantized.is_quantized()) {
    n.quantized = fmt::format("quantised by {}: counted as {}, which every device's kernels read", quantized.source(),
                              name(n.dtype));
  }
  std::vector<std::string> lookups;  // embeddings that no other op reads
  for (const Node& node : model.graph.nodes()) {
    if (!std::holds_alternative<Embed>(node.op)) continue;
    const auto used = [&](const Node& other) {
      return !std::holds_alternative<Embed>(other.op) &&
             std::ranges::any_of(other.weights, [&](const WeightUse& u) { return u.parts == node.weights[0].parts; });
    };
    if (std::ranges::none_of(model.graph.nodes(), used)) lookups.push_back(node.weights[0].parts[0].name);
  }
  std::set<std::string> experts;  // their tensors
  for (const Node& node : model.graph.nodes()) {
    const auto* m = std::get_if<MoeLinear>(&node.op);
    if (m == nullptr) continue;
    n.experts_chosen = static_cast<double>(m->top_k) / static_cast<double>(m->experts);
    for (const WeightUse& use : node.weights) {
      for (const WeightPart& p : use.parts) experts.insert(p.name);
    }
  }
  const QuantFormat* format = nullptr;
  std::set<std::string> linears;  // what --qformat quantises
  if (!options.qformat.empty()) {
    PINION_TRY(format, build_format(options.qformat, checkpoint.is_dummy()));
    for (const Node& node : model.graph.nodes()) {
      if (!is_quantizable(model.graph, node)) continue;
      for (const WeightPart& p : node.weights[0].parts) linears.insert(p.name);
    }
  }
  for (const RankPlan& plan : plans) {  // the fullest rank decides
    double weights = 0, read = 0, expert_bytes = 0;
    for (const TensorSlice& t : plan.tensors) {
      double elements = 1;
      for (int64_t d : t.sliced_shape()) elements *= static_cast<double>(d);
      double bytes = align64(elements * static_cast<double>(byte_size(t.shape.size() == 1 ? DType::f32 : n.dtype)));
      if (format != nullptr && t.sliced_shape().size() == 2 && linears.contains(t.name)) {
        PINION_TRY(const uint64_t packed, packed_bytes(*format, t.sliced_shape()[0], t.sliced_shape()[1]));
        bytes = static_cast<double>(packed);
      }
      weights += bytes;
      if (experts.contains(t.name)) {
        expert_bytes += bytes;
      } else if (std::ranges::find(lookups, t.name) == lookups.end()) {
        read += bytes;
      }
    }
    n.weights = std::max(n.weights, weights);
    n.weights_read = std::max(n.weights_read, read);
    n.experts = std::max(n.experts, expert_bytes);
  }
  const LimitArgs& l = a.model.limits;
  n.max_batch_size = l.max_batch_size ? l.max_batch_size : 64;
  n.max_num_tokens = l.max_num_tokens ? l.max_num_tokens : 2048;
  n.max_seq_len = l.max_seq_len ? l.max_seq_len : model.graph.context_length;
  if (n.max_seq_len > model.graph.context_length) {
    return fail(
        Errc::invalid_argument,
        fmt::format("{} tokens are more than the model's context of {}", n.max_seq_len, model.graph.context_length),
        "--max_seq_len", "choose a smaller number");
  }
  Graph rank = model.graph;
  for (KvLayer& layer : rank.kv_layers) layer.kv_heads = std::max<int64_t>(1, layer.kv_heads / tp);
  const auto groups = kv_groups(rank, n.kv_dtype, options.block_size);
  if (l.kv_cache_tokens)
    n.kv_limit =
        static_cast<double>(blocks_needed(groups, options.block_size, 1, l.kv_cache_tokens)) * page_bytes(groups);
  n.host = std::floor(static_cast<double>(l.kv_cache_host_bytes) / page_bytes(groups)) * page_bytes(groups);
  n.kv_per_sequence =
      static_cast<double>(blocks_needed(groups, options.block_size, 1, n.max_seq_len)) * page_bytes(groups);
  n.kv_read = kv_read_bytes(model.graph.kv_layers, n.kv_dtype, n.max_seq_len, tp);
  PINION_OK(run_passes(model.graph, options.disabled_passes, nullptr));
  n.arena = static_cast<double>(
      plan_memory(model.graph).bytes(n.max_num_tokens, std::min(n.max_batch_size, n.max_num_tokens)));
  return n;
}

Result<Need> need_on_gpu(const Args& a, const Gpu& gpu) {
  if (Engine::is_engine_dir(a.model.model)) {
    return fail(Errc::unsupported, "an engine holds weights fused for its own device", a.model.model,
                "give the checkpoint or its config.json to plan for another one");
  }
  std::error_code code;
  const bool config = std::filesystem::is_regular_file(a.model.model, code);
  PINION_TRY(Checkpoint checkpoint, open_checkpoint(a.model.model, config ? "dummy" : a.model.build.load_format));
  const int tp = a.tp_size ? a.tp_size : gpu.count;
  if (tp > gpu.count)
    return fail(Errc::invalid_argument,
                fmt::format("{} has {} device{}", gpu.name, gpu.count, gpu.count > 1 ? "s" : ""), "--tp_size",
                "choose no more ranks than devices");
  PINION_TRY(Need n, need_of_graph(checkpoint, a, tp));
  if (const std::string& qformat = a.model.build.qformat; !qformat.empty()) {
    n.quantized = fmt::format("counted in {}: a build refuses it where the GPU's kernels do not read it", qformat);
  }
  n.overhead = kGpuOverhead;
  n.memory = gpu.gib * kGpuUsable * (1 << 30);
  n.gbps = gpu.gbps;
  n.devices = tp;
  n.kv_room = std::min(n.kv_limit, std::max(0.0, n.memory - n.weights - n.arena - n.overhead));
  n.kv = std::min(static_cast<double>(n.max_batch_size) * n.kv_per_sequence, n.kv_room);
  return n;
}

Result<Need> need_on_cpu(const Args& a) {
  if (a.tp_size > 1) return fail(Errc::unsupported, "the CPU backend runs one rank", "--tp_size", "leave it out");
  const Backend* backend = nullptr;
  PINION_TRY(auto device, open_device(a.model.build, backend));
  const DeviceInfo& info = device->info();
  Need n;
  std::error_code code;
  const bool dummy = a.model.build.load_format == "dummy" || std::filesystem::is_regular_file(a.model.model, code);
  const double free = static_cast<double>(free_memory_bytes());
  const double given = a.model.limits.kv_cache_fraction, kv_fraction = given > 0 ? given : kHostKvFraction;
  if (dummy) {  // not worth building full-size weights for: all but the workspace is known without
    PINION_TRY(Checkpoint checkpoint, open_checkpoint(a.model.model, "dummy"));
    PINION_TRY(n, need_of_graph(checkpoint, a, 1));
    n.kv_room = std::min(n.kv_limit, kv_fraction * std::max(0.0, free - n.weights));
    n.kv = std::min(static_cast<double>(n.max_batch_size) * n.kv_per_sequence, n.kv_room);
    n.overhead = static_cast<double>(resident_bytes());
  } else {
    PINION_TRY(auto engine, open_engine(a.model, *backend, *device));
    PINION_TRY(const ExecutorOptions o, executor_options(*engine, *backend, *device, a.model.limits,
                                                         {.max_batch_size = 64, .max_num_tokens = 2048}));
    const MemoryPlan plan = plan_load(*engine, *backend, info, o);
    const Manifest& m = engine->manifest();
    const auto groups = kv_groups(engine->graph(), m.kv_dtype, m.block_size);
    n.weights = static_cast<double>(plan.weights);
    n.kv = static_cast<double>(plan.kv);
    n.host = static_cast<double>(plan.host);
    n.arena = static_cast<double>(plan.arena);
    n.workspace = static_cast<double>(plan.workspace);
    n.max_batch_size = o.max_batch_size;
    n.max_num_tokens = o.max_num_tokens;
    n.max_seq_len = o.max_seq_len;
    n.dtype = m.dtype;
    n.kv_dtype = m.kv_dtype;
    n.kv_per_sequence = static_cast<double>(blocks_needed(groups, m.block_size, 1, o.max_seq_len)) * page_bytes(groups);
    n.kv_read = kv_read_bytes(engine->graph().kv_layers, m.kv_dtype, o.max_seq_len, 1);
    n.kv_room = a.model.limits.kv_cache_tokens ? n.kv : kv_fraction * std::max(0.0, free - n.weights);
    for (const PackedWeight& w : engine->weights()) n.kinds[str(w.spec)] += static_cast<double>(w.spec.bytes());
    enum class Read : uint8_t { no, always, chosen };
    std::vector<Read> read(engine->weights().size(), Read::no);
    for (size_t i = 0; i < engine->graph().nodes().size(); ++i) {
      if (std::holds_alternative<Embed>(engine->graph().nodes()[i].op)) continue;
      const auto* moe = std::get_if<MoeLinear>(&engine->graph().nodes()[i].op);
      if (moe) n.experts_chosen = static_cast<double>(moe->top_k) / static_cast<double>(moe->experts);
      for (int32_t id : engine->node_weights(i)) read[id] = moe ? Read::chosen : Read::always;
    }
    for (size_t i = 0; i < read.size(); ++i) {
      const auto bytes = static_cast<double>(engine->weights()[i].spec.bytes());
      if (read[i] != Read::no) (read[i] == Read::chosen ? n.experts : n.weights_read) += bytes;
    }
    // What the process holds besides: program, graph and, as in serving, the tokenizer.
    std::unique_ptr<Tokenizer> tokenizer;
    if (const auto dir = tokenizer_dir(a.model, engine.get()); !dir.empty()) {
      PINION_TRY(Tokenizer t, Tokenizer::load(dir));
      tokenizer = std::make_unique<Tokenizer>(std::move(t));
    }
    n.overhead = static_cast<double>(resident_bytes());
    n.exact = true;
  }
  n.memory = free;
  n.host_counts = true;
  n.gbps = info.read_gbps;
  // Last, as its buffer is freed memory that the process may keep.
  if (auto c = cpu::measure_ceilings({.threads = info.threads, .isa = a.model.build.isa}, size_t{512} << 20))
    n.gbps = c->read_gbps;
  return n;
}

Status run(const Args& a) {
  const auto gpu = std::ranges::find(kGpus, a.gpu, [](const Gpu& g) { return std::string(g.name); });
  if (gpu == kGpus.end() && a.gpu != "cpu") {
    std::string known = "cpu";
    for (const Gpu& g : kGpus) known += fmt::format(", {}", g.name);
    return fail(Errc::invalid_argument, "the device \"" + a.gpu + "\" is not known", "--gpu", "choose from " + known);
  }
  PINION_TRY(const Need n, gpu == kGpus.end() ? need_on_cpu(a) : need_on_gpu(a, *gpu));
  const bool fits = n.total() <= n.memory && n.kv >= n.kv_per_sequence;
  const int64_t largest = fits ? static_cast<int64_t>(n.kv_room / n.kv_per_sequence) : 0;
  const auto floor_ms = [&](double batch) {
    const double experts = n.experts * (1 - std::pow(1 - n.experts_chosen, batch));
    return (n.weights_read + experts + batch * n.kv_read) / n.gbps * 1e-6;
  };
  const double batch = static_cast<double>(std::min(largest, n.max_batch_size));
  if (a.json) {
    Json kinds = Json::object();
    for (const auto& [kind, bytes] : n.kinds) kinds[kind] = std::llround(bytes);
    fmt::print("{}\n", Json{{"model", a.model.model},
                            {"device", a.gpu},
                            {"devices", n.devices},
                            {"dtype", name(n.dtype)},
                            {"kv_cache_dtype", name(n.kv_dtype)},
                            {"exact", n.exact},
                            {"weights", kinds},
                            {"quantized", n.quantized},
                            {"fits", fits},
                            {"max_batch_size", n.max_batch_size},
                            {"max_num_tokens", n.max_num_tokens},
                            {"max_seq_len", n.max_seq_len},
                            {"bytes",
                             {{"weights", std::llround(n.weights)},
                              {"kv", std::llround(n.kv)},
                              {"host_tier", std::llround(n.host)},
                              {"arena", std::llround(n.arena)},
                              {"workspace", std::llround(n.workspace)},
                              {"overhead", std::llround(n.overhead)},
                              {"total", std::llround(n.total())},
                              {"memory", std::llround(n.memory)},
                              {"kv_per_sequence", std::llround(n.kv_per_sequence)}}},
                            {"largest_batch", largest},
                            {"read_gbps", n.gbps},
                            {"floor_ms_per_token", floor_ms(1)},
                            {"floor_ms_per_step_at_batch", floor_ms(batch)}}
                           .dump());
    return {};
  }
  const auto mib = [](double b) { return b / (1 << 20); };
  fmt::print("{} on {}{}: weights {}, KV cache {}\n", a.model.model, a.gpu,
             n.devices > 1 ? fmt::format(", {} ranks, each", n.devices) : "", name(n.dtype), name(n.kv_dtype));
  fmt::print("  weights    {:10.1f} MiB{}\n", mib(n.weights), n.quantized.empty() ? "" : "   " + n.quantized);
  for (const auto& [kind, bytes] : n.kinds) fmt::print("             {:10.1f}     in {}\n", mib(bytes), kind);
  fmt::print("  KV cache   {:10.1f} MiB   {:.1f} MiB for a sequence of {} tokens\n", mib(n.kv), mib(n.kv_per_sequence),
             n.max_seq_len);
  if (n.host > 0) {
    fmt::print("  host tier  {:10.1f} MiB   of the host's memory{}\n", mib(n.host),
               n.host_counts ? "" : ", which the total leaves out");
  }
  fmt::print("  arena      {:10.1f} MiB   for steps of {} tokens\n  workspace  {:10.1f} MiB{}\n", mib(n.arena),
             n.max_num_tokens, mib(n.workspace), n.exact ? "" : "   (known once it is built)");
  fmt::print("  process    {:10.1f} MiB\n  total      {:10.1f} MiB   of {:.1f} MiB: {}\n", mib(n.overhead),
             mib(n.total()), mib(n.memory), fits ? "it fits" : "it does NOT fit");
  fmt::print("  largest batch of {} tokens each: {}\n", n.max_seq_len, largest);
  fmt::print(
      "  no token can take less than {:.2f} ms (batch 1), no step less than {:.2f} ms at batch {:.0f}, at {:.0f} "
      "GB/s\n",
      floor_ms(1), floor_ms(batch), batch, n.gbps);
  return {};
}

}  // namespace

Verb add_plan(CLI::App& app) {
  auto a = std::make_shared<Args>();
  add_model_options(app, a->model);
  add_host_tier_option(app, a->model.limits);
  app.add_option("--gpu", a->gpu, "cpu (this machine), rtx4090, rtx5090, 2x4090, a100, h100, 8xh100, h200 or b200")
      ->capture_default_str();
  app.add_option("--tp_size", a->tp_size, "tensor-parallel ranks; by default all devices")->check(CLI::Range(1, 1024));
  app.add_flag("--json", a->json,
               "print one JSON object: fits, bytes {weights, kv, host_tier, arena, workspace, overhead, total, "
               "memory}, weights by "
               "kind, quantized, "
               "largest_batch, floor_ms_per_token …");
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
