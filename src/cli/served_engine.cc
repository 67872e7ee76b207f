#include "cli/served_engine.h"

#include <algorithm>

#include "cli/sampling_options.h"

namespace pinion::cli {
Result<std::shared_ptr<ServedEngine>> ServedEngine::load(const ServeArgs& args) {
  if (args.no_prefix_reuse && args.model.limits.kv_cache_host_bytes > 0) {
    return fail(Errc::invalid_argument, "a host tier holds prefixes to be reused",
                "--kv_cache_host_memory_bytes, --no_prefix_reuse", "leave one of them out");
  }
  std::shared_ptr<ServedEngine> out(new ServedEngine);
  out->args_ = args;
  PINION_TRY(out->model_, open_model(args.model, {.max_batch_size = 64, .max_num_tokens = 2048}));
  const OpenModel& m = out->model_;
  if (!m.tokenizer) {
    return fail(Errc::invalid_argument, "the model has no tokenizer files", args.model.model,
                "pass their directory with --tokenizer DIR");
  }
  const ExecutorOptions& limits = m.executor->options();
  LoopOptions options;
  if (args.policy == "guaranteed_no_evict") options.policy = SchedulerPolicy::guaranteed_no_evict;
  options.max_batch_size = limits.max_batch_size;
  options.max_num_tokens = limits.max_num_tokens;
  options.max_seq_len = limits.max_seq_len;
  options.max_queue = args.max_queue;
  options.chunk_tokens = args.chunk_tokens;
  options.prefix_reuse = !args.no_prefix_reuse;
  out->loop_ = std::make_unique<EngineLoop>(*m.executor, m.tokenizer.get(), options);
  out->generator_ = std::make_unique<EngineGenerator>(*out->loop_);
  const auto tools = args.tool_call_parser == "auto" ? std::nullopt : parse_tool_format(args.tool_call_parser);
  const auto reasoning =
      args.reasoning_parser == "auto" ? std::nullopt : std::optional<bool>(args.reasoning_parser != "none");
  out->text_ =
      std::make_unique<ModelText>(*m.tokenizer, m.chat_template ? &*m.chat_template : nullptr, tools, reasoning);
  return out;
}

// One short and one long request: pages are touched and threads awake.
Status ServedEngine::warm_up() {
  for (int32_t n : {8, std::min(256, loop_->options().max_seq_len / 2)}) {
    Request request{.id = "warm-up", .prompt = std::vector<int32_t>(std::max(1, n), 0), .sampling = {}};
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = 4;
    request.cache_salt = "warm-up";
    PINION_OK([&]() -> Status {
      auto c = complete(*loop_, std::move(request));
      return c ? Status() : Status(c.error());
    }());
  }
  return {};
}

ModelService ServedEngine::service(const std::string& name) const {
  return {.generator = generator_.get(),
          .text = text_.get(),
          .name = name.empty() ? model_.engine->manifest().model_name : name,
          .max_seq_len = loop_->options().max_seq_len,
          .vocab_size = model_.executor->vocab_size(),
          .defaults = default_sampling(model_.engine->dir(), false),
          .exclude_input = args_.exclude_input};
}

Status ServedEngine::drain() {
  loop_->drain();
  const std::string wrong = loop_->integrity();
  if (wrong.empty() && loop_->stats().blocks_used == 0) return {};
  return fail(Errc::internal, "the KV pool is not whole after the last request: " + wrong, "pinion serve",
              "this is a bug in Pinion");
}

}  // namespace pinion::cli
