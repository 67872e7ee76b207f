#include "session/open_model.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <fstream>

#include "backend/all/backends.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "checkpoint/hf_cache.h"

namespace pinion {
namespace fs = std::filesystem;

fs::path cache_dir() {
  if (const char* dir = std::getenv("PINION_CACHE"); dir && *dir) return dir;
  if (const char* dir = std::getenv("XDG_CACHE_HOME"); dir && *dir) return fs::path(dir) / "pinion";
  if (const char* home = std::getenv("HOME"); home && *home) return fs::path(home) / ".cache" / "pinion";
  return fs::temp_directory_path() / "pinion-cache";
}

Result<BuildOptions> build_options(const BuildArgs& a) {
  BuildOptions o;
  auto dtype = [](const std::string& text, const char* flag, std::optional<DType>& out) -> Status {
    const bool cache = flag == std::string_view("--kv_cache_dtype");
    if (text == "auto") return {};
    out = cache && text == "fp8" ? DType::f8_e4m3 : dtype_from_name(text);
    if (!out || !(is_float(*out) || (cache && is_kv_dtype(*out)))) {
      return fail(
          Errc::invalid_argument, "the dtype \"" + text + "\" is not supported", flag,
          cache ? "choose auto, float32, float16, bfloat16, fp8 or int8" : "choose auto, float32, float16 or bfloat16");
    }
    return {};
  };
  PINION_OK(dtype(a.dtype, "--dtype", o.dtype));
  PINION_OK(dtype(a.kv_cache_dtype, "--kv_cache_dtype", o.kv_dtype));
  o.block_size = a.tokens_per_block;
  o.deterministic = a.deterministic;
  o.time_kernels = !a.no_timing;
  o.disabled_passes = a.disabled_passes;
  o.overrides = {a.rope_theta, a.rope_scaling_factor};
  o.tuning_cache = cache_dir();
  o.force_kernel = a.force_kernel;
  o.qformat = a.qformat;
  o.packed = !a.expand_weights;
  if (!o.qformat.empty() && !o.packed) {
    return fail(Errc::invalid_argument, "weights are quantised here to be read packed", "--expand_weights",
                "leave --qformat or --expand_weights out");
  }
  return o;
}

Result<std::unique_ptr<Device>> open_device(const BuildArgs& a, const Backend*& backend) {
  backend = find_backend(a.target);
  if (!backend) {
    std::string known;
    for (const Backend* b : backends()) known += fmt::format("{}{}", known.empty() ? "" : ", ", b->name());
    return fail(Errc::unsupported, "this Pinion has no backend \"" + a.target + "\"", "--target",
                "choose from " + known);
  }
  return backend->open({.threads = a.threads, .isa = a.isa});
}

namespace {

// What `convert --tp_size` and `--pp_size` write for one rank says so in a section of its own in config.json.
Status refuse_rank(const fs::path& dir) {
  auto config = read_json_file(dir / "config.json");
  if (!config || !config->is_object()) return {};  // whoever needs it says what is wrong
  const auto section = config->find("pinion");
  if (section == config->end() || !section->is_object() || section->contains("ranks")) return {};
  return fail(Errc::unsupported, "this is one rank of a divided checkpoint", dir.string(),
              "give the directory above it, which is read as the whole checkpoint");
}

}  // namespace

Result<Checkpoint> open_checkpoint(const std::string& model, const std::string& load_format) {
  std::error_code code;
  if (load_format == "dummy" && fs::is_regular_file(model, code)) return Checkpoint::dummy(model);
  if (model.ends_with(".gguf") && fs::is_regular_file(model, code)) return Checkpoint::open_gguf(model);
  PINION_TRY(fs::path dir, resolve_model(model));
  PINION_OK(refuse_rank(dir));
  return load_format == "dummy" ? Checkpoint::dummy(dir) : Checkpoint::open(dir);
}

namespace {

// The cache key of a build: the configuration, the weight files as the file system knows them, the options, the device.
Result<std::string> build_key(const Checkpoint& c, const BuildArgs& a, const DeviceInfo& d) {
  std::string text =
      fmt::format("{} {} | {} {} {} {} {} | {} {} {} {} {} {} {} | {} {} | {} {} | ", kEngineFormat, kKernelSetVersion,
                  d.backend, d.name, d.isa, d.threads, c.is_dummy(), a.dtype, a.kv_cache_dtype, a.tokens_per_block,
                  a.deterministic, a.no_timing, fmt::join(a.disabled_passes, ","), a.force_kernel,
                  a.rope_theta.value_or(0), a.rope_scaling_factor.value_or(0), a.qformat, a.expand_weights);
  text += c.config().dump();
  std::error_code code;
  std::vector<std::string> files;
  if (c.gguf() != nullptr) {
    const fs::path& file = c.gguf()->path();
    files.push_back(fmt::format("{} {} {}", file.string(), fs::file_size(file, code),
                                fs::last_write_time(file, code).time_since_epoch().count()));
  }
  std::vector<fs::path> dirs;
  if (c.gguf() == nullptr) dirs.push_back(c.dir());
  for (const Checkpoint& rank : c.ranks()) dirs.push_back(rank.dir());
  for (const fs::path& dir : dirs) {
    for (const auto& entry : fs::directory_iterator(dir, code)) {
      const std::string ext = entry.path().extension().string();
      if (ext == ".safetensors" || ext == ".json" || ext == ".jinja") {
        files.push_back(fmt::format("{} {} {}", entry.path().string(), entry.file_size(code),
                                    entry.last_write_time(code).time_since_epoch().count()));
      }
    }
  }
  std::ranges::sort(files);
  for (const std::string& f : files) text += f + "\n";
  return hash128(text).hex();
}

// What was settled when the engine was built and cannot be chosen again: refused, not ignored.
Status check_engine_flags(const BuildArgs& a, const BuildOptions& wanted, const Manifest& m) {
  const auto refuse = [](const std::string& what, const char* flag) {
    return fail(Errc::invalid_argument, "the engine was built " + what, flag,
                "leave the flag out, or build the checkpoint with it");
  };
  if (wanted.dtype && *wanted.dtype != m.dtype) return refuse(fmt::format("with {} weights", name(m.dtype)), "--dtype");
  if (wanted.kv_dtype && *wanted.kv_dtype != m.kv_dtype)
    return refuse(fmt::format("for a {} KV cache", name(m.kv_dtype)), "--kv_cache_dtype");
  if (wanted.block_size != BuildArgs{}.tokens_per_block && wanted.block_size != m.block_size)
    return refuse(fmt::format("with blocks of {} tokens", m.block_size), "--tokens_per_block");
  if (a.rope_theta) return refuse("with its checkpoint's rotation", "--rope_theta");
  if (a.rope_scaling_factor) return refuse("with its checkpoint's rotation", "--rope_scaling_factor");
  if (!a.disabled_passes.empty() && a.disabled_passes != m.disabled_passes)
    return refuse(m.disabled_passes.empty() ? "with every pass"
                                            : fmt::format("without the passes {}", fmt::join(m.disabled_passes, ", ")),
                  "--disable_pass");
  if (!a.qformat.empty() || a.expand_weights)
    return refuse("with weights of its own", a.expand_weights ? "--expand_weights" : "--qformat");
  if (a.load_format == "dummy") return refuse("with weights of its own", "--load_format");
  return {};
}

}  // namespace

Result<std::unique_ptr<Engine>> open_engine(const ModelArgs& args, const Backend& backend, Device& device) {
  PINION_TRY(BuildOptions options, build_options(args.build));
  const fs::path engines = cache_dir() / "engines";
  if (Engine::is_engine_dir(args.model)) {
    PINION_TRY(Engine engine, Engine::open(args.model));
    const Manifest& m = engine.manifest();
    PINION_OK(check_engine_flags(args.build, options, m));
    const bool other = m.target != backend.name() || m.kernel_set != kKernelSetVersion ||
                       (args.build.deterministic && !m.deterministic) || !options.force_kernel.empty();
    if (!other) return std::make_unique<Engine>(std::move(engine));
    options.deterministic |= m.deterministic;
    PINION_TRY(std::string top, read_file(fs::path(args.model) / "engine.json"));
    const fs::path to = engines / hash128(fmt::format("{} {} {} {} {} {}", top, kKernelSetVersion, device.info().name,
                                                      backend.name(), options.deterministic, options.force_kernel))
                                      .hex();
    if (!Engine::is_engine_dir(to)) {
      spdlog::info("re-selecting kernels of {} for {}", args.model, device.info().name);
      PINION_OK([&]() -> Status {
        auto r = retarget(engine, backend, device, options, to);
        return r ? Status() : Status(r.error());
      }());
    }
    PINION_TRY(Engine selected, Engine::open(to));
    return std::make_unique<Engine>(std::move(selected));
  }
  PINION_TRY(Checkpoint checkpoint, open_checkpoint(args.model, args.build.load_format));
  PINION_TRY(std::string key, build_key(checkpoint, args.build, device.info()));
  const fs::path to = engines / key;
  if (Engine::is_engine_dir(to)) {
    if (auto cached = Engine::open(to)) return std::make_unique<Engine>(*std::move(cached));
    spdlog::warn("the cached engine {} is damaged: building it again", to.string());
  }
  spdlog::info("building {} into the cache", args.model);
  auto report = build_engine(checkpoint, backend, device, options, to);
  if (!report) return report.error();
  PINION_TRY(Engine engine, Engine::open(to));
  return std::make_unique<Engine>(std::move(engine));
}

size_t free_memory_bytes() {
  std::ifstream info("/proc/meminfo");
  std::string key;
  size_t kib = 0;
  while (info >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    info.ignore(64, '\n');
  }
  return size_t{4} << 30;
}

Result<ExecutorOptions> executor_options(const Engine& engine, const Backend& backend, const Device& device,
                                         const LimitArgs& limits, ExecutorOptions o) {
  if (limits.max_batch_size) o.max_batch_size = limits.max_batch_size;
  if (limits.max_num_tokens) o.max_num_tokens = limits.max_num_tokens;
  if (limits.max_seq_len) o.max_seq_len = limits.max_seq_len;
  if (o.max_seq_len == 0) o.max_seq_len = static_cast<int32_t>(engine.graph().context_length);
  if (o.max_seq_len > engine.graph().context_length) {
    return fail(
        Errc::invalid_argument,
        fmt::format("{} tokens are more than the model's context of {}", o.max_seq_len, engine.graph().context_length),
        "--max_seq_len", "choose a smaller number");
  }
  const Manifest& m = engine.manifest();
  const auto groups = kv_groups(engine.graph(), m.kv_dtype, m.block_size);
  size_t page = 1;
  for (const KvGroupInfo& g : groups) page = std::max(page, g.block_bytes);
  if (o.num_blocks == 0) {
    int64_t want = blocks_needed(groups, m.block_size, o.max_batch_size, o.max_seq_len);
    if (limits.kv_cache_tokens) {
      want = std::min(want, blocks_needed(groups, m.block_size, 1, limits.kv_cache_tokens));
    }
    // Of the host's memory the weights come first; on a device everything that a load takes.
    size_t free = free_memory_bytes(), taken = engine.data_bytes();
    double fraction = kHostKvFraction;
    if (!device.host_visible()) {
      ExecutorOptions without_cache = o;
      without_cache.num_blocks = 1;
      free = device.free_bytes();
      taken = plan_load(engine, backend, device.info(), without_cache).total();
      fraction = kDeviceKvFraction;
    }
    if (limits.kv_cache_fraction > 0) fraction = limits.kv_cache_fraction;
    const auto room = static_cast<size_t>(fraction * static_cast<double>(free > taken ? free - taken : 0));
    const int64_t least = blocks_needed(groups, m.block_size, 1, std::min<int64_t>(o.max_seq_len, m.block_size));
    o.num_blocks = static_cast<int32_t>(std::min<int64_t>(want, room / page));
    if (o.num_blocks < least) {
      return fail(Errc::exhausted, fmt::format("the KV cache does not fit: {} MiB of memory are free", free >> 20),
                  "--kv_cache_free_memory_fraction", "free some memory or raise the fraction");
    }
  }
  if (limits.kv_cache_host_bytes > 0) {
    if (limits.kv_cache_host_bytes < page) {
      return fail(Errc::invalid_argument, fmt::format("a KV block of this model takes {} bytes", page),
                  fmt::format("--kv_cache_host_memory_bytes {}", limits.kv_cache_host_bytes), "give at least as many");
    }
    // On a device that computes in the host's memory, weights and pages lie there too.
    const size_t free = free_memory_bytes(),
                 here = device.host_visible() ? engine.data_bytes() + o.num_blocks * page : 0;
    const size_t room = free > here ? free - here : 0;
    if (limits.kv_cache_host_bytes > room) {
      return fail(Errc::exhausted, fmt::format("{} MiB of the host's memory are free for it", room >> 20),
                  fmt::format("--kv_cache_host_memory_bytes {}", limits.kv_cache_host_bytes),
                  "give fewer bytes, or free memory");
    }
    o.host_blocks = static_cast<int32_t>(std::min<size_t>(limits.kv_cache_host_bytes / page, INT32_MAX));
  }
  return o;
}

fs::path tokenizer_dir(const ModelArgs& args, const Engine* engine) {
  if (!args.tokenizer.empty()) return args.tokenizer;
  std::error_code code;
  if (engine && fs::exists(engine->dir() / "tokenizer.json", code)) return engine->dir();
  return {};
}

Result<OpenModel> open_model(const ModelArgs& args, ExecutorOptions defaults) {
  const auto start = std::chrono::steady_clock::now();
  OpenModel m;
  PINION_TRY(m.device, open_device(args.build, m.backend));
  PINION_TRY(m.engine, open_engine(args, *m.backend, *m.device));
  PINION_TRY(ExecutorOptions options, executor_options(*m.engine, *m.backend, *m.device, args.limits, defaults));
  PINION_TRY(m.executor, EngineExecutor::create(*m.engine, *m.backend, *m.device, options));
  if (const fs::path dir = tokenizer_dir(args, m.engine.get()); !dir.empty()) {
    PINION_TRY(Tokenizer tokenizer, Tokenizer::load(dir));
    m.tokenizer = std::make_unique<Tokenizer>(std::move(tokenizer));
    std::error_code code;
    if (fs::is_directory(dir, code)) {
      PINION_TRY(m.chat_template, ChatTemplate::load(dir));
    }
  }
  m.open_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return m;
}

SamplingParams default_sampling(const std::filesystem::path& dir, bool greedy_when_silent) {
  SamplingParams p;
  auto json = dir.empty() ? Result<Json>(Json::object()) : read_json_file(dir / "generation_config.json");
  const Json config = json && json->is_object() ? *json : Json::object();
  auto number = [&](const char* key, auto& out, double low, double high) {
    if (const auto it = config.find(key);
        it != config.end() && it->is_number() && it->get<double>() >= low && it->get<double>() <= high) {
      out = it->get<std::remove_reference_t<decltype(out)>>();
    }
  };
  const bool sample = config.contains("do_sample") ? config["do_sample"] == true : !greedy_when_silent;
  number("temperature", p.temperature, 0, 100);
  number("top_k", p.top_k, 0, 1 << 30);
  number("top_p", p.top_p, 1e-6, 1);
  number("min_p", p.min_p, 0, 1);
  number("repetition_penalty", p.repetition_penalty, 0.01, 100);
  if (!sample && greedy_when_silent) p.temperature = 0;
  return p;
}

}  // namespace pinion
