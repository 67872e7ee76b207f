// build_engine and retarget: the stages in order, each timed for --time.
#include <fmt/format.h>

#include <chrono>

#include "base/log.h"
#include "compiler/compiler.h"

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

// Files that come along so that the engine answers without its checkpoint.
constexpr const char* kCompanions[] = {"tokenizer.json",         "tokenizer_config.json", "special_tokens_map.json",
                                       "generation_config.json", "chat_template.jinja",   "chat_template.json"};

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
  m.model_name = fs::absolute(checkpoint.dir()).lexically_normal().filename().string();
  m.target = backend.name();
  m.device = device.info().name;
  m.dtype = options.dtype.value_or(model.config.dtype);
  m.kv_dtype = options.kv_dtype.value_or(m.dtype);
  if (quantized.is_quantized()) {
    spdlog::info("the weights quantised by {} are expanded to {}: {} has no kernels that read them packed",
                 quantized.source(), name(m.dtype), m.target);
  }
  type_values(c.graph, backend.value_dtype(m.dtype));
  c.arena = plan_memory(c.graph);
  timer.lap("fuse and plan");
  m.block_size = options.block_size;
  m.deterministic = options.deterministic;
  m.disabled_passes = options.disabled_passes;
  PINION_TRY(m.eos_token_ids, eos_ids(checkpoint, c.graph.vocab_size));

  std::vector<const WeightUse*> uses;
  list_weights(c.graph, m.dtype, c.weights, c.node_weights, uses);
  PINION_TRY(c.programs,
             select_kernels(c.graph, c.weights, c.node_weights, backend, device, options, m.kv_dtype, report));
  timer.lap("select kernels");

  PINION_TRY(EngineWriter writer, EngineWriter::create(out));
  std::vector<std::byte> bytes;
  for (size_t i = 0; i < c.weights.size(); ++i) {
    bytes.resize(c.weights[i].spec.bytes());
    PINION_OK(pack_weight(quantized, *uses[i], c.weights[i].spec, bytes));
    PINION_OK(writer.add_weight(c.weights[i], bytes));
    report.weight_bytes += bytes.size();
  }
  timer.lap("pack weights");
  PINION_OK(copy_companions(checkpoint.dir(), writer));
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
  PINION_TRY(c.programs,
             select_kernels(c.graph, c.weights, c.node_weights, backend, device, options, c.manifest.kv_dtype, report));
  timer.lap("select kernels");
  PINION_TRY(EngineWriter writer, EngineWriter::create(out));
  for (PackedWeight& w : c.weights) {
    const PackedWeight from = w;
    PINION_OK(writer.add_weight(w, engine.weight_bytes(from)));
    if (!(w.hash == from.hash))
      return fail(Errc::corrupt, "the weight \"" + w.name + "\" is damaged (checksum differs)", engine.dir().string(),
                  "build the engine again");
    report.weight_bytes += w.spec.bytes();
  }
  PINION_OK(copy_companions(engine.dir(), writer));
  PINION_OK(writer.finish(c));
  timer.lap("copy weights");
  return report;
}

}  // namespace pinion
