// pinion diff: the un-fused graph on the reference kernels against the engine, node by node, over the same tokens
// (node_diff.h).
#include <fmt/format.h>

#include <memory>
#include <random>

#include "cli/model.h"
#include "cli/node_diff.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace {

struct Args {
  ModelArgs model;
  std::string against, input_ids;
  int32_t tokens = 24;
  double tolerance = 0;
};

Status run(Args a) {
  ModelArgs reference = a.model;
  reference.build.target = "reference";
  reference.build.disabled_passes = {"all"};
  reference.build.force_kernel.clear();
  reference.build.deterministic = false;
  if (!a.against.empty()) reference.model = a.against;
  if (Engine::is_engine_dir(reference.model)) {
    return fail(Errc::invalid_argument, "an engine does not hold its un-fused graph", a.model.model,
                "name the checkpoint: pinion diff ENGINE --checkpoint_dir HF");
  }
  const ExecutorOptions defaults{.max_batch_size = 1, .max_num_tokens = 512, .max_outputs = 512};
  PINION_TRY(OpenModel fast, open_model(a.model, defaults));
  reference.build.dtype = std::string(name(fast.engine->manifest().dtype));  // the same weights and cache, bit for bit
  reference.build.kv_cache_dtype = std::string(name(fast.engine->manifest().kv_dtype));
  PINION_TRY(OpenModel slow, open_model(reference, defaults));
  std::vector<int32_t> ids;
  if (!a.input_ids.empty()) {
    PINION_TRY(ids, parse_ids(a.input_ids));
  } else {
    std::mt19937 random(7);
    for (int32_t i = 0; i < a.tokens; ++i) ids.push_back(static_cast<int32_t>(random() % fast.executor->vocab_size()));
  }
  const int64_t most = std::min<int64_t>(512, fast.executor->options().max_seq_len);
  if (std::ssize(ids) > most)
    return fail(Errc::invalid_argument, fmt::format("diff takes up to {} tokens", most), "--input_ids, --tokens");
  for (int32_t id : ids) {
    if (id >= fast.executor->vocab_size())
      return fail(Errc::invalid_argument, fmt::format("token {} is outside the vocabulary", id), "--input_ids");
  }
  PINION_TRY(const NodeDiff diff,
             diff_nodes(*fast.engine, *fast.executor, *slow.engine, *slow.executor, ids, a.tolerance));
  fmt::print("{} values agree; logits: max difference {:.3g}, rms {:.3g} of {:.3g}\n", diff.compared, diff.logits.worst,
             diff.logits.rms, diff.logits.scale);
  return {};
}

}  // namespace

Verb add_diff(CLI::App& app) {
  auto a = std::make_shared<Args>();
  add_model_options(app, a->model);
  app.add_option("--checkpoint_dir", a->against, "the checkpoint that an engine was built from");
  app.add_option("--input_ids", a->input_ids, "token ids, 1,2,3; random ones otherwise");
  app.add_option("--tokens", a->tokens, "how many random tokens")->check(CLI::Range(1, 512))->capture_default_str();
  app.add_option("--tolerance", a->tolerance, "rms difference allowed, relative to a value's rms")
      ->check(CLI::PositiveNumber);
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
