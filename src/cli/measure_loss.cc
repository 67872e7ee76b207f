#include "cli/measure_loss.h"

#include <fmt/format.h>
#include <unistd.h>

#include "calibrate/dataset.h"
#include "calibrate/evaluate.h"

namespace pinion::cli {
namespace fs = std::filesystem;
namespace {

constexpr ExecutorOptions kLimits{.max_num_tokens = 512, .max_outputs = 512};

}  // namespace

Json Loss::json() const {
  return {{"tokens", tokens},
          {"kl", kl},
          {"top1", top1},
          {"perplexity", perplexity},
          {"reference_perplexity", reference_perplexity}};
}

Result<LossMeter> LossMeter::open(const QuantizeArgs& a) {
  LossMeter out;
  out.tokenizer_ = a.tokenizer;
  ModelArgs args{.model = a.model_dir, .tokenizer = a.tokenizer, .build = {}, .limits = {}};
  args.build.dtype = "float32";
  args.build.no_timing = true;
  args.limits.max_batch_size = 1;
  PINION_TRY(out.reference_, open_model(args, kLimits));
  const OpenModel& m = out.reference_;
  PINION_TRY(out.texts_, read_dataset(a.eval_dataset, m.tokenizer.get(), m.chat_template ? &*m.chat_template : nullptr,
                                      {.max_lines = a.eval_size}));
  return out;
}

Result<Loss> LossMeter::measure(const fs::path& checkpoint) {
  const fs::path engine = checkpoint.string() + fmt::format(".engine-{}", ::getpid());
  const auto measured = [&]() -> Result<Loss> {
    ModelArgs args{.model = engine.string(), .tokenizer = tokenizer_, .build = {}, .limits = {}};
    args.build.no_timing = true;
    args.limits.max_batch_size = 1;
    const Backend* backend = nullptr;
    PINION_TRY(auto device, open_device(args.build, backend));
    PINION_TRY(const BuildOptions options, build_options(args.build));
    PINION_TRY(const Checkpoint source, open_checkpoint(checkpoint.string(), "auto"));
    PINION_TRY(const BuildReport report, build_engine(source, *backend, *device, options, engine));
    PINION_TRY(OpenModel m, open_model(args, kLimits));
    PINION_TRY(const Evaluation e, evaluate(*m.executor, reference_.executor.get(), texts_));
    return Loss{e.tokens, e.kl(), e.top1(), e.perplexity(), e.reference_perplexity()};
  }();
  std::error_code code;
  fs::remove_all(engine, code);
  return measured;
}

Status check_loss(const fs::path& checkpoint, double max_kl) {
  const fs::path file = checkpoint / kLossReport;
  const auto missing = [&](const char* what) {
    return fail(Errc::invalid_argument, what, file.string(), "run pinion quantize with --eval_dataset");
  };
  auto report = read_json_file(file, {.bytes = size_t{64} << 20, .depth = 8});
  if (!report && report.error().code == Errc::not_found) return missing("nobody has measured this checkpoint's loss");
  if (!report) return report.error();
  const auto evaluation = report->is_object() ? report->find("evaluation") : report->end();
  const Json kl = evaluation != report->end() && evaluation->is_object() ? evaluation->value("kl", Json()) : Json();
  if (!kl.is_number()) return missing("the report has no KL divergence");
  if (kl.get<double>() <= max_kl) return {};
  return fail(
      Errc::invalid_argument,
      fmt::format("the checkpoint's KL divergence is {:.3g} per token, more than {:.3g}", kl.get<double>(), max_kl),
      "--max_kl", "quantise it with a smaller group, another format, or --max_kl");
}

}  // namespace pinion::cli
