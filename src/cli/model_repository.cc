#include "cli/model_repository.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/file.h"
#include "base/log.h"

namespace fs = std::filesystem;

namespace pinion::cli {
namespace {

constexpr std::string_view kBls = "tensorrt_llm_bls";  // TensorRT-LLM's script in place of an ensemble
constexpr size_t kMostConfigBytes = size_t{1} << 20;

// Parameters of TensorRT-LLM's backend that need nothing here, or that steer what its executor does by itself.
constexpr std::array<std::string_view, 33> kAccepted = {"gpt_model_type",
                                                        "executor_worker_path",
                                                        "max_attention_window_size",
                                                        "kv_cache_onboard_blocks",
                                                        "enable_trt_overlap",
                                                        "cancellation_check_period_ms",
                                                        "stats_check_period_ms",
                                                        "recv_poll_period_ms",
                                                        "iter_stats_max_iterations",
                                                        "request_stats_max_iterations",
                                                        "normalize_log_probs",
                                                        "gpu_device_ids",
                                                        "participant_ids",
                                                        "num_nodes",
                                                        "lora_cache_optimal_adapter_size",
                                                        "lora_cache_max_adapter_size",
                                                        "lora_cache_gpu_memory_fraction",
                                                        "lora_cache_host_memory_bytes",
                                                        "gpu_weights_percent",
                                                        "enable_context_fmha_fp32_acc",
                                                        "multi_block_mode",
                                                        "cuda_graph_mode",
                                                        "cuda_graph_cache_size",
                                                        "speculative_decoding_fast_logits",
                                                        "guided_decoding_backend",
                                                        "xgrammar_tokenizer_info_path",
                                                        "cross_kv_cache_fraction",
                                                        "sink_token_length",
                                                        "accumulate_tokens",
                                                        "skip_special_tokens",
                                                        "add_special_tokens",
                                                        "logits_datatype",
                                                        "FORCE_CPU_ONLY_INPUT_TENSORS"};
// Those that are read, in load_engine() and tokenizer().
constexpr std::array<std::string_view, 14> kRead = {"gpt_model_path",
                                                    "engine_dir",
                                                    "kv_cache_free_gpu_mem_fraction",
                                                    "max_tokens_in_paged_kv_cache",
                                                    "enable_kv_cache_reuse",
                                                    "enable_chunked_context",
                                                    "batch_scheduler_policy",
                                                    "exclude_input_in_output",
                                                    "tokenizer_dir",
                                                    "tensorrt_llm_model_name",
                                                    "decoding_mode",
                                                    "max_beam_width",
                                                    "max_queue_size",
                                                    "kv_cache_host_memory_bytes"};

bool is_true(const std::string& text) {
  return text == "true" || text == "True" || text == "1";
}

bool has_engine(const TritonConfig& config) {
  return config.backend == "tensorrtllm" || config.backend == "pinion";
}

// The highest of the directories whose names are positive numbers; 0: none.
int64_t newest_version(const fs::path& model) {
  int64_t newest = 0;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(model, code)) {
    const std::string name = entry.path().filename();
    int64_t version = 0;
    const auto [end, errc] = std::from_chars(name.data(), name.data() + name.size(), version);
    if (errc == std::errc() && end == name.data() + name.size() && entry.is_directory(code)) {
      newest = std::max(newest, version);
    }
  }
  return newest;
}

template <class Number>
Status read_number(const TritonConfig& config, const char* key, double least, double most, Number& out) {
  const std::string text = config.parameter(key);
  if (text.empty()) return {};
  double value = 0;
  const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (errc != std::errc() || end != text.data() + text.size() || !(value >= least && value <= most)) {
    return fail(Errc::invalid_argument, fmt::format("\"{}\" is not a number from {} to {}", text, least, most),
                fmt::format("{}: {}", config.name, key), "");
  }
  out = static_cast<Number>(value);
  return {};
}

}  // namespace

std::vector<std::string> ModelRepository::names() {
  std::vector<std::string> out;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(directory_, code)) {
    if (fs::is_regular_file(entry.path() / "config.pbtxt", code)) out.push_back(entry.path().filename());
  }
  std::ranges::sort(out);
  return out;
}

Result<TritonConfig> ModelRepository::read_config(const std::string& name) const {
  const fs::path path = directory_ / name / "config.pbtxt";
  PINION_TRY(const std::string text, read_file(path, kMostConfigBytes));
  PINION_TRY(TritonConfig out, read_triton_config(text, path.string()));
  if (!out.name.empty() && out.name != name) {
    return fail(Errc::invalid_argument, fmt::format("the name \"{}\" is not the directory's", out.name), path.string(),
                "make both the same");
  }
  out.name = name;
  return out;
}

// The engine's own files, unless a configuration says where they are: its own, or the pipeline's first step's.
fs::path ModelRepository::tokenizer(const TritonConfig& own) const {
  if (const std::string dir = own.parameter("tokenizer_dir"); !dir.empty()) return dir;
  if (auto step = read_config("preprocessing")) return step->parameter("tokenizer_dir");
  return args_.model.tokenizer;
}

Result<std::shared_ptr<ServedEngine>> ModelRepository::shared_engine(const std::string& name,
                                                                     const TritonConfig& config) {
  for (const auto& [key, value] : config.parameters) {
    if (std::ranges::find(kAccepted, key) == kAccepted.end() && std::ranges::find(kRead, key) == kRead.end()) {
      spdlog::warn("{}: the parameter {} has no meaning here", name, key);
    }
  }
  const std::string mode = config.parameter("decoding_mode");
  if (!mode.empty() && mode != "auto" && !mode.starts_with("top_k") && mode != "top_p") {
    return fail(Errc::unsupported, "the decoding mode is not implemented", fmt::format("{}: {}", name, mode),
                "leave decoding_mode out, or choose top_k_top_p");
  }
  ServeArgs args = args_;
  int32_t beams = 1;
  PINION_OK(read_number(config, "max_beam_width", 1, 1, beams));
  PINION_OK(read_number(config, "kv_cache_host_memory_bytes", 0, 1e15, args.model.limits.kv_cache_host_bytes));
  PINION_OK(read_number(config, "kv_cache_free_gpu_mem_fraction", 0.0001, 0.99, args.model.limits.kv_cache_fraction));
  PINION_OK(read_number(config, "max_tokens_in_paged_kv_cache", 1, 1 << 30, args.model.limits.kv_cache_tokens));
  PINION_OK(read_number(config, "max_queue_size", 1, 1 << 20, args.max_queue));
  if (config.max_batch_size > 0) args.model.limits.max_batch_size = static_cast<int32_t>(config.max_batch_size);
  if (const auto reuse = config.parameter("enable_kv_cache_reuse"); !reuse.empty()) {
    args.no_prefix_reuse = !is_true(reuse);
  }
  if (const auto chunked = config.parameter("enable_chunked_context"); !chunked.empty() && !is_true(chunked)) {
    args.chunk_tokens = 1 << 20;  // a prompt is one piece, if it fits a step
  }
  if (const auto policy = config.parameter("batch_scheduler_policy"); !policy.empty()) {
    if (policy != "max_utilization" && policy != "guaranteed_no_evict") {
      return fail(Errc::invalid_argument, "unknown policy", fmt::format("{}: {}", name, policy),
                  "choose max_utilization or guaranteed_no_evict");
    }
    args.policy = policy;
  }
  args.exclude_input = is_true(config.parameter("exclude_input_in_output"));

  const fs::path version = directory_ / name / std::to_string(newest_version(directory_ / name));
  fs::path engine = version;
  for (const char* key : {"engine_dir", "gpt_model_path"}) {
    if (const std::string given = config.parameter(key); !given.empty()) engine = given;
  }
  if (engine.is_relative()) engine = version / engine;
  args.model.model = engine.string();
  args.model.tokenizer = tokenizer(config).string();

  // Two names of one engine share it; an engine that was written again since is loaded again.
  std::error_code code;
  const auto written = fs::last_write_time(engine / "engine.json", code).time_since_epoch().count();
  std::string key = fmt::format("{} {} {} ", engine.string(), code ? 0 : written, args.model.tokenizer);
  for (const auto& [k, value] : config.parameters) key += k + "=" + value + "\n";
  key += std::to_string(config.max_batch_size);
  if (auto engine_there = loaded_[key].lock()) return engine_there;
  PINION_TRY(std::shared_ptr<ServedEngine> loaded, ServedEngine::load(args));
  PINION_OK(loaded->warm_up());
  spdlog::info("{}: loaded {} in {:.2f} s", name, engine.string(), loaded->model().open_seconds);
  loaded_[key] = loaded;
  return loaded;
}

Result<std::string> ModelRepository::step_with_engine(const std::string& name, const TritonConfig& own) const {
  std::vector<std::string> steps = own.steps;
  const std::string named = own.parameter("tensorrt_llm_model_name");
  if (!named.empty() || name == kBls) steps.push_back(named.empty() ? "tensorrt_llm" : named);
  for (const std::string& step : steps) {
    if (auto c = read_config(step); c && has_engine(*c)) return step;
  }
  return fail(Errc::unsupported, "no step of the pipeline has an engine", name,
              "one must be of the backend tensorrtllm or pinion");
}

Result<LoadedModel> ModelRepository::load(const std::string& name) {
  PINION_TRY(const TritonConfig own, read_config(name));
  const int64_t version = newest_version(directory_ / name);
  if (version == 0) {
    return fail(Errc::not_found, "the model has no version directory", (directory_ / name).string(),
                "make one, such as 1/");
  }
  std::string with_engine = name;
  if (!has_engine(own)) {
    const bool script = own.backend == "python" && name != kBls && own.parameter("tensorrt_llm_model_name").empty();
    if (script) {  // a step that runs inside of the pipeline
      LoadedModel out{.service = {}, .version = std::to_string(version), .owner = nullptr};
      out.service.name = name;
      return out;
    }
    if (own.platform != "ensemble" && own.backend != "python") {
      return fail(
          Errc::unsupported,
          fmt::format("the backend \"{}\" is not served here", own.backend.empty() ? own.platform : own.backend), name,
          "tensorrtllm, pinion, and pipelines around them are");
    }
    PINION_TRY(with_engine, step_with_engine(name, own));
  }
  PINION_TRY(const TritonConfig engine_config, read_config(with_engine));
  PINION_TRY(std::shared_ptr<ServedEngine> engine, shared_engine(with_engine, engine_config));
  return LoadedModel{.service = engine->service(name), .version = std::to_string(version), .owner = engine};
}

std::vector<std::shared_ptr<ServedEngine>> ModelRepository::engines() const {
  std::vector<std::shared_ptr<ServedEngine>> out;
  for (const auto& [key, engine] : loaded_) {
    if (auto there = engine.lock()) out.push_back(std::move(there));
  }
  return out;
}

Status write_triton_repository(const fs::path& engine, const fs::path& repository, const fs::path& tokenizer,
                               bool decoupled) {
  std::error_code code;
  const std::string engine_dir = fs::absolute(engine, code).string();
  if (!fs::is_directory(engine, code)) return fail(Errc::not_found, "there is no engine", engine.string(), "build one");
  const std::string tokenizer_dir = tokenizer.empty() ? engine_dir : fs::absolute(tokenizer, code).string();
  const auto quoted = [](const std::string& text) {
    std::string out = "\"";
    for (const char c : text) out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    return out + "\"";
  };
  const auto parameter = [&](std::string_view key, const std::string& value) {
    return fmt::format("parameters {{ key: \"{}\" value {{ string_value: {} }} }}\n", key, quoted(value));
  };
  const std::string policy = fmt::format("model_transaction_policy {{ decoupled: {} }}\n", decoupled);
  const std::array<std::pair<std::string_view, std::string>, 4> models = {{
      {"tensorrt_llm", "backend: \"tensorrtllm\"\nmax_batch_size: 0\n" + policy + parameter("engine_dir", engine_dir) +
                           parameter("tokenizer_dir", tokenizer_dir)},
      {"preprocessing", "backend: \"python\"\nmax_batch_size: 0\n" + parameter("tokenizer_dir", tokenizer_dir)},
      {"postprocessing", "backend: \"python\"\nmax_batch_size: 0\n" + parameter("tokenizer_dir", tokenizer_dir)},
      {"ensemble", "platform: \"ensemble\"\nmax_batch_size: 0\n" + policy +
                       "ensemble_scheduling {\n  step [\n    { model_name: \"preprocessing\" model_version: -1 },\n"
                       "    { model_name: \"tensorrt_llm\" model_version: -1 },\n"
                       "    { model_name: \"postprocessing\" model_version: -1 }\n  ]\n}\n"},
  }};
  if (fs::exists(repository, code) && !fs::is_empty(repository, code)) {
    return fail(Errc::invalid_argument, "the directory is not empty", repository.string(), "give a new one");
  }
  PINION_TRY(AtomicDir dir, AtomicDir::create(repository));
  for (const auto& [name, text] : models) {
    fs::create_directories(dir.path() / name / "1", code);
    if (code) return fail(Errc::io, "cannot make a directory: " + code.message(), repository.string(), "");
    PINION_OK(write_file(dir.path() / name / "config.pbtxt", fmt::format("name: \"{}\"\n{}", name, text)));
    PINION_OK(write_file(dir.path() / name / "1" / "README", "The engine lies where config.pbtxt says.\n"));
  }
  return dir.commit();
}

}  // namespace pinion::cli
