// pinion quantize: a float checkpoint to a quantised one, in the compressed-tensors form. Formats that look at the
// linears' inputs run the model over a calibration set first.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <memory>

#include "base/log.h"
#include "calibrate/dataset.h"
#include "calibrate/quantize_model.h"
#include "calibrate/sequence_runner.h"
#include "checkpoint/hf_cache.h"
#include "checkpoint/writer.h"
#include "cli/model.h"
#include "cli/quantize.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace fs = std::filesystem;
namespace {

// Rows kept of each linear's inputs. AWQ's searches look at 512 (its paper's tool does too); GPTQ's second moments want
// more rows than a group has columns.
constexpr int64_t kSampleRows = 2048;

// A line every few seconds, rewritten on a terminal.
class Steps {
 public:
  explicit Steps(std::string what) : what_(std::move(what)) {}
  void at(int64_t done, int64_t total) {
    const auto now = std::chrono::steady_clock::now();
    const bool terminal = isatty(STDERR_FILENO) != 0;
    if (now - last_ < std::chrono::milliseconds(terminal ? 200 : 5000)) return;
    last_ = now;
    if (terminal) {
      fmt::print(stderr, "\r{} {} of {}\033[K", what_, done, total);
      shown_ = true;
    } else {
      spdlog::info("{} {} of {}", what_, done, total);
    }
  }
  ~Steps() {
    if (shown_) fmt::print(stderr, "\r\033[K");
  }

 private:
  std::string what_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Runs the model in float32, node by node as the checkpoint has them, over the calibration set.
Result<std::unique_ptr<InputCollector>> collect(const QuantizeArgs& a, OpenModel& m) {
  PINION_TRY(const auto texts,
             read_dataset(a.calib_dataset, m.tokenizer.get(), m.chat_template ? &*m.chat_template : nullptr,
                          {.max_lines = a.calib_size, .max_tokens = a.calib_max_seq_length}));
  auto inputs = std::make_unique<InputCollector>(m.engine->graph(), kSampleRows);
  m.executor->observe([&](size_t node, std::span<const TensorView> outputs) { inputs->see(node, outputs); });
  SequenceRunner runner(*m.executor);
  Steps steps("calibrating with text");
  for (size_t i = 0; i < texts.size(); ++i) {
    if (const Status fits = runner.check(texts[i]); !fits) {
      return fail(fits.error().code, fits.error().message, fmt::format("{}, text {}", a.calib_dataset, i + 1));
    }
    const auto n = static_cast<int32_t>(texts[i].size());
    for (int32_t at = 0; at < n; at += runner.piece()) runner.run(texts[i], at, std::min(runner.piece(), n - at));
    steps.at(static_cast<int64_t>(i) + 1, std::ssize(texts));
  }
  return inputs;
}

Result<EncodeOptions> encode_options(const QuantizeArgs& a, const QuantFormat& format) {
  EncodeOptions o = format.defaults;
  if (a.group_size >= 0) o.group = a.group_size;
  if (a.symmetric) o.zero_points = false;
  if (a.static_inputs) {
    if (o.input == InputQuant::e4m3_token) {
      o.input = InputQuant::e4m3_static;
    } else if (o.input == InputQuant::int8_token) {
      o.input = InputQuant::int8_static;
    } else {
      return fail(Errc::invalid_argument, fmt::format("{} does not round inputs", format.name), "--static_inputs",
                  "leave it out");
    }
  }
  return o;
}

}  // namespace

Status quantize(const QuantizeArgs& a) {
  const auto start = std::chrono::steady_clock::now();
  PINION_TRY(const QuantFormat* format, find_quant_format(a.qformat));
  QuantizeModelOptions options{.format = format, .exclude_modules = a.exclude_modules};
  PINION_TRY(options.encode, encode_options(a, *format));
  const bool calibrate = format->needs_inputs || a.static_inputs;
  if (calibrate && a.calib_dataset.empty()) {
    return fail(Errc::invalid_argument, fmt::format("{} needs a calibration set", a.qformat), "--calib_dataset",
                "give a JSONL file with a line of {\"text\": …} or {\"messages\": […]} per sample");
  }
  PINION_OK(check_output_directory(a.output_dir));
  PINION_TRY(const Checkpoint checkpoint, open_checkpoint(a.model_dir, "auto"));
  std::error_code code;
  if (fs::equivalent(checkpoint.dir(), a.output_dir, code)) {
    return fail(Errc::invalid_argument, "the output would replace the model that is read", "--output_dir",
                "choose another directory");
  }
  PINION_TRY(const QuantizedCheckpoint quantized, QuantizedCheckpoint::open(checkpoint));
  if (quantized.is_quantized()) {
    return fail(Errc::invalid_argument, fmt::format("the checkpoint is quantised already, by {}", quantized.source()),
                checkpoint.dir().string(), "start from the float model");
  }
  PINION_TRY(const Model model, build_model(checkpoint.config(), checkpoint.config_path().string()));

  std::unique_ptr<InputCollector> inputs;
  OpenModel open;
  if (calibrate) {
    ModelArgs args;
    args.model = a.model_dir;
    args.tokenizer = a.tokenizer;
    args.build.dtype = "float32";
    args.build.no_timing = true;
    args.build.disabled_passes = {"all"};
    args.limits.max_batch_size = 1;
    args.limits.max_seq_len = a.calib_max_seq_length;
    PINION_TRY(open, open_model(args, {.max_num_tokens = 512, .max_outputs = 512}));
    PINION_TRY(inputs, collect(a, open));
  }
  Steps steps("quantising linear");
  options.progress = [&](int64_t done, int64_t total) { steps.at(done, total); };
  PINION_TRY(const QuantizedModel made, quantize_model(checkpoint, model, options, inputs.get()));
  HfWriteOptions write;
  if (checkpoint.config_path().filename() == "config.json") write.copy_from = checkpoint.dir();
  PINION_OK(write_hf_checkpoint(a.output_dir, made.config, made.tensors, write));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (a.json) {
    fmt::print("{}\n", Json{{"output_dir", a.output_dir},
                            {"qformat", a.qformat},
                            {"linears", made.linears},
                            {"bytes_before", made.bytes_before},
                            {"bytes_after", made.bytes_after},
                            {"seconds", seconds}}
                           .dump());
  } else {
    fmt::print("wrote {}: {} linears in {}, {:.1f} MiB instead of {:.1f}, {:.1f} s\n", a.output_dir, made.linears,
               a.qformat, static_cast<double>(made.bytes_after) / (1 << 20),
               static_cast<double>(made.bytes_before) / (1 << 20), seconds);
  }
  return {};
}

Verb add_quantize(CLI::App& app) {
  auto a = std::make_shared<QuantizeArgs>();
  std::string formats;
  for (const QuantFormat& f : quant_formats()) formats += fmt::format("\n  {}: {}", f.name, f.summary);
  app.add_option("--model_dir,--checkpoint_dir", a->model_dir,
                 "a Hugging Face directory, or org/name in the local cache")
      ->required();
  app.add_option("--output_dir", a->output_dir, "the checkpoint directory to write")->required();
  app.add_option("--qformat", a->qformat, "the format:" + formats)->required();
  app.add_option("--group_size,--awq_block_size", a->group_size,
                 "int4: columns that share a scale: 32, 64, 128, 0: the whole row")
      ->check(CLI::Range(0, 1 << 20));
  app.add_flag("--symmetric", a->symmetric, "int4: no zero points");
  app.add_flag("--static_inputs", a->static_inputs, "fp8, int8_sq: one calibrated scale for a linear's inputs");
  app.add_option("--exclude_modules", a->exclude_modules, "modules to leave in floats: names, * and ? are wildcards");
  app.add_option("--calib_dataset", a->calib_dataset, "JSONL with \"text\", \"prompt\", \"messages\" or \"ids\"");
  app.add_option("--calib_size", a->calib_size, "lines of it to use")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--calib_max_seq_length", a->calib_max_seq_length, "tokens of a line to use")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--tokenizer", a->tokenizer, "directory with the tokenizer's files; by default the model's");
  app.add_flag("--json", a->json,
               "print one JSON object: output_dir, qformat, linears, bytes_before, bytes_after, seconds");
  return [a] { return quantize(*a); };
}

}  // namespace pinion::cli
