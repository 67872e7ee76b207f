// build_engine and retarget: the stages in order, each timed for --time.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <map>

#include "base/log.h"
#include "compiler/compiler.h"
#include "compiler/packed_weights.h"
#include "compiler/weight_writer.h"

namespace pinion {
namespace fs = std::filesystem;
namespace {

class Timer {
 public:
  explicit Timer(BuildReport& report) : report_(report) {}
  void lap(std::string name) {
    const auto now = std::chrono::steady_clock::now();
    report_.stages.push_back({std::move(name), std::chrono::duration<double>(now - start_).count()});
    start_ = now;
  }

 private:
  BuildReport& report_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

class StopAtExit {
 public:
  explicit StopAtExit(std::atomic<bool>& stop) : stop_(stop) {}
  ~StopAtExit() { stop_ = true; }
  StopAtExit(const StopAtExit&) = delete;
  StopAtExit& operator=(const StopAtExit&) = delete;

 private:
  std::atomic<bool>& stop_;
};

// Files that come along so that the engine answers without its checkpoint.
constexpr const char* kCompanions[] = {"tokenizer.json",          "tokenizer_config.json", "special_tokens_map.json",
                                       "generation_config.json",  "chat_template.jinja",   "chat_template.json",
                                       "quantization_report.json"};

Status copy_companions(const fs::path& from, EngineWriter& writer) {
  for (const char* name : kCompanions) {
    std::error_code code;
    if (fs::exists(from / name, code)) PINION_OK(writer.add_file(from / name));
  }
  return {};
}

// generation_config.json's end-of-text ids, else config.json's.
Result<std::vector<int32_t>> eos_ids(const Checkpoint& checkpoint, int64_t vocab) {
  for (const Json* json : {&checkpoint.generation_config(), &checkpoint.config()}) {
    if (!json->is_object()) continue;
    PINION_TRY(auto ids,
               ConfigReader(*json, checkpoint.config_path().string()).one_or_many_ints("eos_token_id", {0, vocab - 1}));
    if (!ids.empty()) return std::vector<int32_t>(ids.begin(), ids.end());
  }
  return std::vector<int32_t>{};
}

std::vector<size_t> nodes_with(const EngineContents& c, int32_t weight) {
  std::vector<size_t> out;
  for (size_t n = 0; n < c.node_weights.size(); ++n) {
    if (std::ranges::find(c.node_weights[n], weight) != c.node_weights[n].end()) out.push_back(n);
  }
  return out;
}

// Why some node with this weight has no kernel for it as `spec`, with many rows or with one; empty: all have.
std::string why_not_read(const EngineContents& c, std::span<const size_t> nodes, int32_t weight, const WeightSpec& spec,
                         const Backend& backend, const DeviceInfo& device, DType kv_dtype) {
  for (const size_t i : nodes) {
    const Node& n = c.graph.nodes()[i];
    std::vector<WeightSpec> specs;
    for (const int32_t id : c.node_weights[i]) specs.push_back(id == weight ? spec : c.weights[id].spec);
    for (const int64_t rows : {int64_t{1}, int64_t{512}}) {
      const Call call{.op = &n.op,
                      .rows = rows,
                      .inputs = static_cast<int>(n.in.size()),
                      .weights = specs,
                      .values = value_types(c.graph, n),
                      .kv_dtype = kv_dtype};
      const auto kernels = backend.kernels(kind(n.op));
      const bool some = std::ranges::any_of(kernels, [&](const Kernel& k) { return k.why_not(call, device).empty(); });
      if (!some) return fmt::format("{} has no {} kernel that reads {}", backend.name(), op_name(n.op), str(spec));
    }
  }
  return {};
}

using Reasons = std::map<std::string, int>;  // how many weights, by why they are expanded
void log_expanded(const Reasons& expanded, DType dtype) {
  for (const auto& [why, n] : expanded) {
    spdlog::info("{} of the quantised weights {} expanded to {}: {}", n, n == 1 ? "is" : "are", name(dtype), why);
  }
}

void count_weight(const WeightSpec& spec, BuildReport& report) {
  auto& kind = report.weights[str(spec)];
  ++kind.count;
  kind.bytes += spec.bytes();
  report.weight_bytes += spec.bytes();
}

}  // namespace

Result<BuildReport> build_engine(const Checkpoint& checkpoint, const Backend& backend, Device& device,
                                 const BuildOptions& options, const fs::path& out) {
  BuildReport report;
  Timer timer(report);
  if (options.block_size != 16 && options.block_size != 32 && options.block_size != 64) {
    return fail(Errc::invalid_argument, fmt::format("blocks of {} tokens are not supported", options.block_size),
                "--tokens_per_block", "choose 16, 32 or 64");
  }
  ModelOverrides overrides = options.overrides;
  overrides.dtype = options.dtype;
  PINION_TRY(Model model, build_model(checkpoint.config(), checkpoint.config_path().string(), overrides));
  PINION_TRY(const QuantizedCheckpoint quantized, QuantizedCheckpoint::open(checkpoint));
  timer.lap("read model");
  EngineContents c;
  c.graph = std::move(model.graph);
  PINION_OK(run_passes(c.graph, options.disabled_passes, nullptr));
  Manifest& m = c.manifest;
  m.architecture = model.config.architecture;
  m.model_name = checkpoint.gguf() != nullptr ? checkpoint.config_path().stem().string()
                                              : fs::absolute(checkpoint.dir()).lexically_normal().filename().string();
  m.target = backend.name();
  m.device = device.info().name;
  m.dtype = options.dtype.value_or(model.config.dtype);
  m.kv_dtype = options.kv_dtype.value_or(m.dtype);
  const QuantFormat* format = nullptr;
  if (!options.qformat.empty()) {
    if (quantized.is_quantized()) {
      return fail(Errc::invalid_argument, fmt::format("the checkpoint is quantised already, by {}", quantized.source()),
                  "--qformat", "leave it out");
    }
    PINION_TRY(format, build_format(options.qformat, checkpoint.is_dummy()));
  }
  if (m.kv_dtype == DType::f8_e4m3) PINION_OK(read_kv_scales(checkpoint, c.graph));
  type_values(c.graph, backend.value_dtype(m.dtype));
  c.arena = plan_memory(c.graph);
  timer.lap("fuse and plan");
  m.block_size = options.block_size;
  m.deterministic = options.deterministic;
  m.disabled_passes = options.disabled_passes;
  PINION_TRY(m.eos_token_ids, eos_ids(checkpoint, c.graph.vocab_size));

  std::vector<const WeightUse*> uses;
  list_weights(c.graph, m.dtype, c.weights, c.node_weights, uses);
  // Which weights are packed shows only when they are read; kernels are chosen before where nothing is quantised, so
  // that what cannot run is refused at once.
  const bool packs = options.packed && (quantized.is_quantized() || format != nullptr);
  const auto select = [&]() -> Status {
    PINION_TRY(c.programs,
               select_kernels(c.graph, c.weights, c.node_weights, backend, device, options, m.kv_dtype, report));
    timer.lap("select kernels");
    return {};
  };
  std::vector<DenseWeight> dense;  // all of them, where nothing is quantised: they hold no bytes
  for (size_t i = 0; i < c.weights.size() && !packs && !quantized.is_quantized(); ++i) {
    PINION_TRY(DenseWeight weight, DenseWeight::open(quantized, *uses[i], c.weights[i].spec));
    dense.push_back(std::move(weight));
  }
  // A device with memory of its own times kernels while the host packs, unless it is to convert weights itself.
  const bool beside = !dense.empty() && !device.host_visible() && !checkpoint.is_dummy() &&
                      std::ranges::none_of(dense, [](const DenseWeight& w) { return DeviceRows::packs(w); });
  if (!packs && !beside) PINION_OK(select());

  PINION_TRY(EngineWriter writer, EngineWriter::create(out));
  // Beside, half of the processors: whoever times kernels must not wait for one.
  ThreadPool pool(beside ? std::max(1, available_cpus() / 2) : available_cpus());
  WeightPacker plain(quantized, nullptr, pool), encoder(quantized, format, pool);
  WeightWriter weights(writer, device, pool);
  Reasons expanded;
  std::atomic<bool> stop = false;
  const auto pack_all = [&]() -> Status {
    for (size_t i = 0; i < c.weights.size() && !stop; ++i) {
      WeightSpec& spec = c.weights[i].spec;
      std::vector<std::byte> bytes;
      bool packed = false;
      if (packs) {
        const std::vector<size_t> nodes = nodes_with(c, static_cast<int32_t>(i));
        const bool encodes = format != nullptr && std::ranges::all_of(nodes, [&](size_t n) {
                               return is_quantizable(c.graph, c.graph.nodes()[n]);
                             });
        WeightPacker& packer = encodes ? encoder : plain;
        const auto why_not = [&](const WeightSpec& s) {
          return why_not_read(c, nodes, static_cast<int32_t>(i), s, backend, device.info(), m.kv_dtype);
        };
        PINION_TRY(packed, packer.pack(*uses[i], spec, why_not, bytes));
        if (!packed && !packer.why().empty()) ++expanded[packer.why()];
      }
      if (packed) {
        PINION_OK(weights.add(c.weights[i], std::move(bytes)));
      } else if (!dense.empty()) {
        PINION_OK(weights.add(c.weights[i], dense[i]));
      } else {
        PINION_TRY(const DenseWeight weight, DenseWeight::open(quantized, *uses[i], spec));
        PINION_OK(weights.add(c.weights[i], weight));
      }
      count_weight(spec, report);
    }
    return weights.finish();
  };
  if (beside) {
    auto packing = std::async(std::launch::async, pack_all);
    const StopAtExit leaving(stop);  // before `packing` waits for its thread, where select() fails
    PINION_OK(select());
    PINION_OK(packing.get());
  } else {
    PINION_OK(pack_all());
  }
  log_expanded(expanded, m.dtype);
  timer.lap("pack weights");
  report.write_wait_seconds = weights.waited_seconds();
  if (packs) PINION_OK(select());
  if (const GgufModel* gguf = checkpoint.gguf_model()) {
    for (const auto& [file, text] : gguf->files) PINION_OK(writer.add_text(file, text));
    if (gguf->files.empty()) spdlog::warn("the file's tokenizer is not used: {}", gguf->no_tokenizer);
  } else {
    PINION_OK(copy_companions(checkpoint.dir(), writer));
  }
  PINION_OK(writer.finish(c));
  timer.lap("write and sync");
  return report;
}

Result<BuildReport> retarget(const Engine& engine, const Backend& backend, Device& device, const BuildOptions& options,
                             const fs::path& out) {
  BuildReport report;
  Timer timer(report);
  EngineContents c = engine.contents();
  c.manifest.target = backend.name();
  c.manifest.device = device.info().name;
  c.manifest.kernel_set = kKernelSetVersion;
  c.manifest.deterministic = options.deterministic;
  type_values(c.graph, backend.value_dtype(c.manifest.dtype));
  c.arena = plan_memory(c.graph);
  Reasons expanded;
  for (size_t i = 0; i < c.weights.size(); ++i) {
    WeightSpec& spec = c.weights[i].spec;
    const auto id = static_cast<int32_t>(i);
    if (spec.layout != Layout::packed) continue;
    const auto why = why_not_read(c, nodes_with(c, id), id, spec, backend, device.info(), c.manifest.kv_dtype);
    if (why.empty()) continue;
    ++expanded[why];
    spec = {spec.dtype, Layout::row_major, spec.rows, spec.cols, {}};
  }
  log_expanded(expanded, c.manifest.dtype);
  PINION_TRY(c.programs,
             select_kernels(c.graph, c.weights, c.node_weights, backend, device, options, c.manifest.kv_dtype, report));
  timer.lap("select kernels");
  PINION_TRY(EngineWriter writer, EngineWriter::create(out));
  for (size_t i = 0; i < c.weights.size(); ++i) {
    PackedWeight& w = c.weights[i];
    const PackedWeight& from = engine.weights()[i];
    const auto bytes = engine.weight_bytes(from);
    if (hash128(bytes) != from.hash)
      return fail(Errc::corrupt, "the weight \"" + w.name + "\" is damaged (checksum differs)", engine.dir().string(),
                  "build the engine again");
    const bool expands = from.spec.layout == Layout::packed && w.spec.layout != Layout::packed;
    PINION_OK(expands ? writer.add_weight(w, expand_packed(from.spec, bytes)) : writer.add_weight(w, bytes));
    count_weight(w.spec, report);
  }
  PINION_OK(copy_companions(engine.dir(), writer));
  PINION_OK(writer.finish(c));
  timer.lap("copy weights");
  return report;
}

}  // namespace pinion
