// pinion convert: a checkpoint in the Hugging Face layout again: in another dtype, divided over ranks, or made of dummy
// weights. Tensors stream through, so that a model larger than memory converts.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <set>

#include "base/log.h"
#include "checkpoint/writer.h"
#include "cli/model.h"
#include "cli/quantize.h"
#include "cli/shard_checkpoint.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace fs = std::filesystem;
namespace {

struct Args {
  std::string model_dir, output_dir, dtype = "auto", load_format = "auto", max_shard_size = "5GB";
  int tp_size = 1, pp_size = 1, ep_size = 1;
  bool json = false;
  std::vector<std::pair<std::string, std::string>> quantisation;  // flags given about quantisation
};

// "5GB", "500MB", "2GiB" or a number of bytes.
Result<uint64_t> parse_size(const std::string& text) {
  const auto bad = [&] {
    return fail(Errc::invalid_argument, "\"" + text + "\" is no size", "--max_shard_size",
                "write 5GB, 500MB or a number of bytes");
  };
  char* unit = nullptr;
  const double value = std::strtod(text.c_str(), &unit);
  double scale = 0;
  for (const auto& [name, s] : {std::pair{"", 1.0},
                                {"B", 1.0},
                                {"KB", 1e3},
                                {"MB", 1e6},
                                {"GB", 1e9},
                                {"KiB", 1024.0},
                                {"MiB", 1048576.0},
                                {"GiB", 1073741824.0}}) {
    if (std::string_view(unit) == name) scale = s;
  }
  if (unit == text.c_str() || scale == 0 || !(value * scale >= 1) || value * scale > 1e15) return bad();
  return static_cast<uint64_t>(value * scale);
}

// A bar on a terminal, a line every few seconds in a log.
class Progress {
 public:
  explicit Progress(uint64_t total) : total_(total) {}
  void add(uint64_t bytes) {
    done_ += bytes;
    const auto now = std::chrono::steady_clock::now();
    const bool terminal = isatty(STDERR_FILENO) != 0;
    if (now - last_ < std::chrono::milliseconds(terminal ? 200 : 5000)) return;
    last_ = now;
    shown_ = terminal;
    const double share = total_ ? 100.0 * static_cast<double>(done_) / static_cast<double>(total_) : 100;
    if (terminal) {
      fmt::print(stderr, "\r{:5.1f} % of {:.1f} MiB", share, static_cast<double>(total_) / (1 << 20));
    } else {
      spdlog::info("{:.1f} % of {:.1f} MiB written", share, static_cast<double>(total_) / (1 << 20));
    }
  }
  ~Progress() {
    if (shown_) fmt::print(stderr, "\r\033[K");
  }

 private:
  uint64_t total_, done_ = 0;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// What --use_weight_only [--weight_only_precision int8|int4] or --use_fp8 [--calib_dataset FILE] asks of `pinion
// quantize`; an empty format: nothing.
Result<QuantizeArgs> quantize_args(const Args& a) {
  QuantizeArgs q{.model_dir = a.model_dir, .output_dir = a.output_dir};
  q.json = a.json;
  if (a.quantisation.empty()) return q;
  std::string precision;
  bool weight_only = false, fp8 = false;
  for (const auto& [flag, value] : a.quantisation) {
    if (flag == "--use_weight_only") {
      weight_only = true;
    } else if (flag == "--use_fp8") {
      fp8 = true;
    } else if (flag == "--weight_only_precision") {
      precision = value;
    } else if (flag == "--calib_dataset") {
      q.calib_dataset = value;
    } else if (flag == "--calib_size" && value.find_first_not_of("0123456789") == std::string::npos && !value.empty() &&
               value.size() < 7 && std::stoi(value) > 0) {
      q.calib_size = std::stoi(value);
    } else {
      return fail(Errc::unsupported, "convert does not quantise so", flag, "use pinion quantize --qformat");
    }
  }
  if (weight_only == fp8 || (fp8 && !precision.empty())) {
    return fail(Errc::invalid_argument, "weights are quantised by --use_weight_only or by --use_fp8",
                fp8 ? "--use_fp8" : "--use_weight_only", "give one of them");
  }
  if (weight_only && precision.empty()) precision = "int8";
  if (weight_only && precision != "int8" && precision != "int4") {
    return fail(Errc::invalid_argument, "the precision is int8 or int4, with --use_weight_only",
                "--weight_only_precision", "write --use_weight_only --weight_only_precision int4");
  }
  if (a.tp_size > 1 || a.pp_size > 1 || a.dtype != "auto" || a.load_format == "dummy") {
    return fail(Errc::unsupported, "quantising goes with no other conversion yet",
                fp8 ? "--use_fp8" : "--use_weight_only", "leave --tp_size, --pp_size, --dtype and --load_format out");
  }
  q.qformat = fp8 ? "fp8" : precision + "_wo";
  q.static_inputs = fp8 && !q.calib_dataset.empty();
  return q;
}

Status refuse_unsupported(const Args& a) {
  if (a.ep_size > 1) {
    return fail(Errc::unsupported,
                "experts are not divided by their numbers yet, only each expert's width over tensor-parallel ranks",
                "--ep_size", "use --tp_size or --pp_size");
  }
  return {};
}

Status run(const Args& a) {
  const auto start = std::chrono::steady_clock::now();
  PINION_OK(refuse_unsupported(a));
  PINION_TRY(const QuantizeArgs quantisation, quantize_args(a));
  if (!quantisation.qformat.empty()) return quantize(quantisation);
  std::optional<DType> dtype;
  if (a.dtype != "auto") {
    dtype = dtype_from_name(a.dtype);
    if (!dtype || !is_float(*dtype)) {
      return fail(Errc::invalid_argument, "the dtype \"" + a.dtype + "\" is not supported", "--dtype",
                  "choose auto, float32, float16 or bfloat16");
    }
  }
  HfWriteOptions options;
  PINION_TRY(options.max_shard_bytes, parse_size(a.max_shard_size));
  PINION_OK(check_output_directory(a.output_dir));
  PINION_TRY(Checkpoint checkpoint, open_checkpoint(a.model_dir, a.load_format));
  PINION_TRY(const QuantizedCheckpoint quantized, QuantizedCheckpoint::open(checkpoint));
  if (quantized.is_quantized()) {
    return fail(Errc::unsupported, fmt::format("convert does not read checkpoints quantised by {}", quantized.source()),
                checkpoint.dir().string(), "build, serve and generate take them as they are");
  }
  std::error_code code;
  if (fs::equivalent(checkpoint.dir(), a.output_dir, code)) {
    return fail(Errc::invalid_argument, "the output would replace the model that is read", "--output_dir",
                "choose another directory");
  }
  PINION_TRY(Model model, build_model(checkpoint.config(), checkpoint.config_path().string()));
  PINION_TRY(std::vector<RankPlan> plans, plan_ranks(model, a.tp_size, a.pp_size, &checkpoint));

  Json config = checkpoint.config();
  std::set<std::string, std::less<>> used;  // the checkpoint's tensors that some rank holds a part of
  const auto type_of = [&](const TensorSlice& slice) -> Result<DType> {
    PINION_TRY(const WeightSource source, open_slice(checkpoint, slice));
    used.insert(std::string(source.tensor().name));
    return dtype || checkpoint.is_dummy() ? dtype.value_or(model.config.dtype) : source.tensor().dtype;
  };
  if (dtype) {
    const char* key = config.contains("dtype") ? "dtype" : "torch_dtype";
    config[key] = std::string(name(*dtype));
  }
  const bool ranks = plans.size() > 1;
  // Beside a config of another name lie other models' files, if any.
  const bool companions = checkpoint.config_path().filename() == "config.json";
  if (companions && !ranks) options.copy_from = checkpoint.dir();

  std::vector<std::vector<TensorToWrite>> tensors;
  uint64_t total = 0;
  for (const RankPlan& plan : plans) {
    auto& list = tensors.emplace_back();
    for (const TensorSlice& t : plan.tensors) {
      PINION_TRY(const DType type, type_of(t));
      PINION_TRY(TensorToWrite w, slice_tensor(checkpoint, t, type));
      total += w.bytes();
      list.push_back(std::move(w));
    }
  }
  std::vector<std::string> unknown;
  if (!checkpoint.is_dummy()) {
    for (const std::string& name : checkpoint.names()) {
      if (!used.contains(name)) unknown.push_back(name);
    }
    if (!unknown.empty())
      spdlog::warn("{} tensors that the model does not use are left out, first {}", unknown.size(), unknown[0]);
  }
  auto progress = std::make_shared<Progress>(total);
  uint64_t before = 0;
  options.progress = [progress, &before](uint64_t done, uint64_t) {
    progress->add(done - before);
    before = done;
  };

  PINION_TRY(AtomicDir dir, AtomicDir::create(a.output_dir));
  if (!ranks) {
    PINION_OK(write_hf_files(dir.path(), config, tensors[0], options));
  } else {
    for (size_t r = 0; r < plans.size(); ++r) {
      const fs::path to = dir.path() / fmt::format("rank{}", r);
      if (!fs::create_directory(to, code)) return fail(Errc::io, "cannot create the directory", to.string());
      Json own = config;
      own["pinion"] = rank_json(plans[r], a.tp_size, a.pp_size);
      before = 0;
      PINION_OK(write_hf_files(to, own, tensors[r], options));
    }
    // At the top what says that the ranks belong together, and what they share: it is read as the whole checkpoint.
    config["pinion"] = {{"tp_size", a.tp_size}, {"pp_size", a.pp_size}, {"ranks", plans.size()}};
    PINION_OK(write_file(dir.path() / "config.json", config.dump(2) + "\n"));
    if (companions) PINION_OK(copy_companions(checkpoint.dir(), dir.path(), true));
  }
  PINION_OK(dir.commit());
  progress.reset();
  options.progress = nullptr;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (a.json) {
    fmt::print("{}\n", Json{{"output_dir", a.output_dir},
                            {"bytes", total},
                            {"ranks", plans.size()},
                            {"tensors_left_out", unknown.size()},
                            {"seconds", seconds}}
                           .dump());
  } else {
    fmt::print("wrote {}: {:.1f} MiB, {} rank{}, {:.1f} s\n", a.output_dir, static_cast<double>(total) / (1 << 20),
               plans.size(), ranks ? "s" : "", seconds);
  }
  return {};
}

}  // namespace

Verb add_convert(CLI::App& app) {
  auto a = std::make_shared<Args>();
  app.add_option("--model_dir,--checkpoint_dir", a->model_dir,
                 "a Hugging Face directory, org/name in the local cache; with --load_format dummy also a config.json")
      ->required();
  app.add_option("--output_dir", a->output_dir,
                 "the directory to write; with ranks, one directory rank0, rank1 … each in it")
      ->required();
  app.add_option("--dtype", a->dtype, "auto (as it is), float32, float16 or bfloat16")->capture_default_str();
  app.add_option("--load_format", a->load_format, "auto, or dummy: pseudo-random weights from config.json alone")
      ->check(CLI::IsMember({"auto", "safetensors", "dummy"}))
      ->capture_default_str();
  app.add_option("--max_shard_size", a->max_shard_size, "of one safetensors file: 5GB, 500MB …")->capture_default_str();
  app.add_option("--tp_size", a->tp_size, "tensor-parallel ranks")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--pp_size", a->pp_size, "pipeline-parallel ranks")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--ep_size", a->ep_size, "expert-parallel ranks: only 1 yet; --tp_size divides every expert")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_flag("--json", a->json, "print one JSON object: output_dir, bytes, ranks, tensors_left_out, seconds");
  // Known from other compilers. Weight-only precision and fp8 are taken; the rest is named, so that it is refused and
  // not taken for a typing error.
  for (const char* flag : {"--use_weight_only", "--use_fp8", "--smoothquant", "--per_channel", "--per_token",
                           "--int8_kv_cache", "--fp8_kv_cache"}) {
    app.add_flag_callback(
           flag, [a, flag] { a->quantisation.emplace_back(flag, ""); }, "quantises, as pinion quantize does")
        ->group("");
  }
  for (const char* flag : {"--weight_only_precision", "--calib_dataset", "--calib_size", "--qformat", "--group_size"}) {
    app.add_option_function<std::string>(
           flag, [a, flag](const std::string& v) { a->quantisation.emplace_back(flag, v); },
           "quantises, as pinion quantize does")
        ->group("");
  }
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
