// pinion quantize: a float checkpoint to a quantised one, in the compressed-tensors form. Formats that look at the
// linears' inputs run the model over a calibration set first.
#include "cli/quantize.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <memory>

#include "base/hash.h"
#include "base/locate_error.h"
#include "base/log.h"
#include "calibrate/dataset.h"
#include "calibrate/mixed_precision.h"
#include "calibrate/quantize_model.h"
#include "calibrate/sequence_runner.h"
#include "checkpoint/hf_cache.h"
#include "checkpoint/writer.h"
#include "cli/measure_loss.h"
#include "cli/model.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace fs = std::filesystem;
namespace {

// Rows kept of each linear's inputs. AWQ's searches look at 512 (its paper's tool does too); GPTQ's second moments want
// more rows than a group has columns.
constexpr int64_t kSampleRows = 2048;
constexpr auto kSaveEvery = std::chrono::seconds(60);  // of the calibration's state: what an interruption loses

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

// What a calibration's state belongs to: the model's files, the texts, and what is kept of them.
std::string calibration_key(const Checkpoint& checkpoint, const std::vector<std::vector<int32_t>>& texts) {
  std::string text = checkpoint.config().dump() + fmt::format(" {} {}", checkpoint.total_bytes(), kSampleRows);
  for (const auto& ids : texts) text += fmt::format(" {}", fmt::join(ids, ","));
  return hash128(text).hex();
}

// Runs the model in float32, node by node as the checkpoint has them, over the calibration set.
Result<std::unique_ptr<InputCollector>> collect(const QuantizeArgs& a, const Checkpoint& checkpoint, OpenModel& m) {
  PINION_TRY(const auto texts,
             read_dataset(a.calib_dataset, m.tokenizer.get(), m.chat_template ? &*m.chat_template : nullptr,
                          {.max_lines = a.calib_size, .max_tokens = a.calib_max_seq_length}));
  auto inputs = std::make_unique<InputCollector>(m.engine->graph(), kSampleRows);
  const bool resumes = !a.calib_state.empty();
  const std::string key = resumes ? calibration_key(checkpoint, texts) : "";
  int64_t first = 0;
  if (resumes) {
    PINION_TRY(first, inputs->load(a.calib_state, key));
    if (first > 0) spdlog::info("going on after {} of {} texts", first, texts.size());
  }
  m.executor->observe([&](size_t node, std::span<const TensorView> outputs) { inputs->see(node, outputs); });
  SequenceRunner runner(*m.executor);
  Steps steps("calibrating with text");
  auto saved = std::chrono::steady_clock::now();
  for (int64_t i = first; i < std::ssize(texts); ++i) {
    if (const Status fits = runner.check(texts[i]); !fits) {
      return locate_error(fits.error(), fmt::format("{}, text {}", a.calib_dataset, i + 1));
    }
    const auto n = static_cast<int32_t>(texts[i].size());
    for (int32_t at = 0; at < n; at += runner.piece()) runner.run(texts[i], at, std::min(runner.piece(), n - at));
    steps.at(i + 1, std::ssize(texts));
    const auto now = std::chrono::steady_clock::now();
    if (resumes && (now - saved >= kSaveEvery || i + 1 == std::ssize(texts))) {
      PINION_OK(inputs->save(a.calib_state, key, i + 1));
      saved = now;
    }
  }
  return inputs;
}

Result<EncodeOptions> encode_options(const QuantizeArgs& a, const QuantFormat& format) {
  EncodeOptions o = format.defaults;
  if (a.group_size >= 0) o.group = a.group_size;
  if (a.symmetric) o.zero_points = false;
  o.smooth_alpha = static_cast<float>(a.smooth_alpha);
  const auto unknown = [](const char* what, const std::string& value, const char* flag, const char* remedy) {
    return fail(Errc::invalid_argument, fmt::format("\"{}\" is no {}", value, what), flag, remedy);
  };
  if (a.weight_scales != "channel" && format.name != "fp8") {
    return fail(Errc::invalid_argument, fmt::format("{} has scales of its own", format.name), "--weight_scales",
                "leave it out");
  }
  if (a.weight_scales == "tensor") {
    o.block_rows = o.block_cols = 0;
  } else if (a.weight_scales == "block") {
    o.block_rows = o.block_cols = 128;
    o.input = InputQuant::e4m3_token_group128;
  } else if (a.weight_scales != "channel") {
    return unknown("unit of scales", a.weight_scales, "--weight_scales", "choose tensor, channel or block");
  }
  if (a.input_dtype != "auto") {
    if (format.name != "w4a8_awq") {
      return fail(Errc::invalid_argument, fmt::format("{} leaves no choice of the inputs' type", format.name),
                  "--input_dtype", "leave it out");
    }
    if (a.input_dtype != "fp8" && a.input_dtype != "int8") {
      return unknown("type of inputs", a.input_dtype, "--input_dtype", "choose fp8 or int8");
    }
    o.input = a.input_dtype == "fp8" ? InputQuant::e4m3_token : InputQuant::int8_token;
  }
  if (a.static_inputs) {
    if (o.input == InputQuant::e4m3_token) {
      o.input = InputQuant::e4m3_static;
    } else if (o.input == InputQuant::int8_token) {
      o.input = InputQuant::int8_static;
    } else {
      return fail(Errc::invalid_argument, fmt::format("{} does not round inputs by one scale for all", format.name),
                  "--static_inputs", "leave it out");
    }
  }
  return o;
}

// What was asked of flags that need each other.
Status check_args(const QuantizeArgs& a, bool calibrate) {
  if (calibrate && a.calib_dataset.empty()) {
    return fail(Errc::invalid_argument, fmt::format("{} needs a calibration set", a.qformat), "--calib_dataset",
                "give a JSONL file with a line of {\"text\": …} or {\"messages\": […]} per sample");
  }
  if (!calibrate && !a.calib_state.empty()) {
    return fail(Errc::invalid_argument, fmt::format("{} is not calibrated", a.qformat), "--calib_state",
                "leave it out");
  }
  if (a.kv_cache_dtype != "auto" && a.kv_cache_dtype != "fp8" && a.kv_cache_dtype != "int8") {
    return fail(Errc::invalid_argument, "the KV cache type \"" + a.kv_cache_dtype + "\" is not known",
                "--kv_cache_dtype", "choose auto, fp8 or int8");
  }
  if (a.effective_bits > 0 && a.max_kl > 0) {
    return fail(Errc::invalid_argument, "a size and a loss cannot both be met", "--effective_bits, --max_kl",
                "give one of them");
  }
  if (a.max_kl > 0 && a.eval_dataset.empty()) {
    return fail(Errc::invalid_argument, "the loss is measured on texts", "--eval_dataset", "give a JSONL file");
  }
  return {};
}

class Quantization {
 public:
  Quantization(const QuantizeArgs& a, const Checkpoint& checkpoint, const Model& model, QuantizeModelOptions options,
               const InputCollector* inputs)
      : a_(a), checkpoint_(checkpoint), model_(model), options_(std::move(options)), inputs_(inputs) {
    if (checkpoint.config_path().filename() == "config.json") write_.copy_from = checkpoint.dir();
  }

  Result<QuantizedModel> make(std::set<std::string> in_8bit, bool measure_8bit) {
    Steps steps("quantising linear");
    options_.in_8bit = std::move(in_8bit);
    options_.measure_8bit = measure_8bit;
    options_.progress = [&](int64_t done, int64_t total) { steps.at(done, total); };
    auto made = quantize_model(checkpoint_, model_, options_, inputs_);
    options_.progress = nullptr;
    return made;
  }
  Status write(const QuantizedModel& made, const fs::path& to) {
    return write_hf_checkpoint(to, made.config, made.tensors, write_);
  }

  // The model that meets what was asked; `loss` is what measuring it gave, where that was needed.
  Result<QuantizedModel> search(std::optional<Loss>& loss) {
    const bool mixed = a_.effective_bits > 0 || a_.max_kl > 0;
    PINION_TRY(QuantizedModel made, make({}, mixed));
    if (!mixed) return made;
    const std::vector<std::string> order = by_gain(made.report);
    if (a_.effective_bits > 0) {
      PINION_TRY(const size_t n, count_for_size(made.report, order, a_.effective_bits));
      spdlog::info("{} of {} linears in 8 bits: {:.2f} bits per weight", n, order.size(),
                   bits_with(made.report, order, n));
      return make({order.begin(), order.begin() + static_cast<int64_t>(n)}, true);
    }
    PINION_TRY(LossMeter meter, LossMeter::open(a_));
    const auto loss_of = [&](size_t n) -> Result<double> {
      PINION_TRY(made, make({order.begin(), order.begin() + static_cast<int64_t>(n)}, true));
      const fs::path to = a_.output_dir + ".trial";
      PINION_OK(write(made, to));
      const auto measured = meter.measure(to);
      std::error_code code;
      fs::remove_all(to, code);
      if (!measured) return measured.error();
      loss = *measured;
      spdlog::info("{} of {} linears in 8 bits: KL divergence {:.3g} per token", n, order.size(), loss->kl);
      return loss->kl;
    };
    PINION_TRY(const size_t n, count_for_loss(order.size(), a_.max_kl, loss_of));
    if (options_.in_8bit.size() != n) {  // the last one that was tried was another
      const auto again = loss_of(n);
      if (!again) return again.error();
    }
    return made;
  }

 private:
  const QuantizeArgs& a_;
  const Checkpoint& checkpoint_;
  const Model& model_;
  QuantizeModelOptions options_;
  const InputCollector* inputs_;
  HfWriteOptions write_;
};

Json report_json(const QuantizeArgs& a, const QuantizedModel& made, const std::optional<Loss>& loss) {
  Json linears = Json::array();
  for (const LinearReport& l : made.report) {
    linears.push_back({{"module", l.module},
                       {"scheme", l.scheme},
                       {"elements", l.elements},
                       {"bytes", l.bytes},
                       {"relative_error", l.error}});
  }
  Json out{{"qformat", a.qformat}, {"linears", linears}};
  if (loss) out["evaluation"] = loss->json();
  return out;
}

}  // namespace

Status quantize(const QuantizeArgs& a) {
  const auto start = std::chrono::steady_clock::now();
  PINION_TRY(const QuantFormat* format, find_quant_format(a.qformat));
  QuantizeModelOptions options{.format = format, .exclude_modules = a.exclude_modules};
  options.head = a.lm_head, options.embedding = a.embedding;
  PINION_TRY(options.encode, encode_options(a, *format));
  PINION_TRY(options.input_range, range_method(a.input_range));
  const bool calibrate = format->needs_inputs || a.static_inputs || a.kv_cache_dtype == "fp8";
  PINION_OK(check_args(a, calibrate));
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
    PINION_TRY(inputs, collect(a, checkpoint, open));
    if (a.kv_cache_dtype == "fp8") options.kv_scales = inputs->kv_scales();
  }
  Quantization work(a, checkpoint, model, std::move(options), inputs.get());
  std::optional<Loss> loss;
  PINION_TRY(const QuantizedModel made, work.search(loss));
  PINION_OK(work.write(made, a.output_dir));
  if (!a.eval_dataset.empty() && !loss) {
    PINION_TRY(LossMeter meter, LossMeter::open(a));
    PINION_TRY(loss, meter.measure(a.output_dir));
  }
  const Json report = report_json(a, made, loss);
  PINION_OK(write_file(fs::path(a.output_dir) / kLossReport, report.dump(2) + "\n"));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (a.json) {
    Json json{{"output_dir", a.output_dir},
              {"qformat", a.qformat},
              {"linears", made.linears},
              {"bytes_before", made.bytes_before},
              {"bytes_after", made.bytes_after},
              {"report", report["linears"]},
              {"seconds", seconds}};
    if (loss) json["evaluation"] = loss->json();
    fmt::print("{}\n", json.dump());
    return {};
  }
  fmt::print("wrote {}: {} linears in {}, {:.1f} MiB instead of {:.1f}, {:.1f} s\n", a.output_dir, made.linears,
             a.qformat, static_cast<double>(made.bytes_after) / (1 << 20),
             static_cast<double>(made.bytes_before) / (1 << 20), seconds);
  if (loss) {
    fmt::print("over {} tokens: KL divergence {:.3g} per token, perplexity {:.4f} (was {:.4f})\n", loss->tokens,
               loss->kl, loss->perplexity, loss->reference_perplexity);
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
  app.add_flag("--static_inputs", a->static_inputs,
               "fp8, int8_sq, w4a8_awq: one calibrated scale for a linear's inputs");
  app.add_option(
         "--input_range", a->input_range,
         "what that scale covers: max; percentile, 99.99 % of the inputs; mse, the least squared error; auto: mse "
         "for int8, max for fp8")
      ->capture_default_str();
  app.add_option("--input_dtype", a->input_dtype, "w4a8_awq: the inputs' type, fp8 or int8; auto: fp8")
      ->capture_default_str();
  app.add_option("--weight_scales", a->weight_scales,
                 "fp8: a scale per tensor, channel, or block of 128x128 (its inputs: per token and 128 columns)")
      ->capture_default_str();
  app.add_option("--smooth_alpha", a->smooth_alpha,
                 "int8_sq: how much of the inputs' range goes into the weights; 0: no smoothing")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--exclude_modules", a->exclude_modules, "modules to leave in floats: names, * and ? are wildcards");
  app.add_flag("--quantize_lm_head", a->lm_head, "the head in int8 too");
  app.add_flag("--quantize_embedding", a->embedding, "the embedding in int8 too");
  app.add_option("--kv_cache_dtype", a->kv_cache_dtype,
                 "fp8: calibrate the KV cache's scales, for build's flag of that name")
      ->capture_default_str();
  app.add_option("--effective_bits", a->effective_bits,
                 "mixed precision: the linears that gain most by it in int8, up to so many bits per weight")
      ->check(CLI::Range(2.0, 16.0));
  app.add_option("--max_kl", a->max_kl, "mixed precision: as many linears in int8 as this KL divergence needs")
      ->check(CLI::Range(1e-9, 1e3));
  app.add_option("--calib_dataset", a->calib_dataset, "JSONL with \"text\", \"prompt\", \"messages\" or \"ids\"");
  app.add_option("--calib_size", a->calib_size, "lines of it to use")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--calib_max_seq_length", a->calib_max_seq_length, "tokens of a line to use")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--calib_state", a->calib_state, "a file that keeps the calibration's state: it goes on from there");
  app.add_option("--eval_dataset", a->eval_dataset, "JSONL to compare the result with the float model on");
  app.add_option("--eval_size", a->eval_size, "lines of it to use")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--tokenizer", a->tokenizer, "directory with the tokenizer's files; by default the model's");
  app.add_flag("--json", a->json,
               "print one JSON object: output_dir, qformat, linears, bytes_before, bytes_after, report, evaluation, "
               "seconds");
  return [a] { return quantize(*a); };
}

}  // namespace pinion::cli
