#include "options.h"

#include <fmt/format.h>

namespace pinion::python {
namespace {

template <class T>
Status in_range(const char* name, T value, T least, T most) {
  if (value >= least && value <= most) return {};
  return fail(Errc::invalid_argument, fmt::format("{} is out of range", value), name,
              fmt::format("choose from {} to {}", least, most));
}

Status one_of(const char* name, const std::string& value, std::initializer_list<const char*> known) {
  for (const char* choice : known) {
    if (value == choice) return {};
  }
  return fail(Errc::invalid_argument, "\"" + value + "\" is not known", name,
              fmt::format("choose from {}", fmt::join(known, ", ")));
}

}  // namespace

Status check(const Options& o) {
  const LimitArgs& limits = o.model.limits;
  const BuildArgs& build = o.model.build;
  PINION_OK(in_range("max_batch_size", limits.max_batch_size, 0, 65536));
  PINION_OK(in_range("max_num_tokens", limits.max_num_tokens, 0, 1 << 20));
  PINION_OK(in_range("max_seq_len", limits.max_seq_len, 0, 1 << 30));
  PINION_OK(in_range("kv_cache_free_gpu_memory_fraction", limits.kv_cache_fraction, 0.0, 0.99));
  PINION_OK(in_range("kv_cache_max_tokens", limits.kv_cache_tokens, 0, 1 << 30));
  PINION_OK(in_range("threads", build.threads, 0, 1024));
  PINION_OK(in_range("max_queue", o.max_queue, 0, 1 << 20));
  PINION_OK(in_range("chunk_tokens", o.chunk_tokens, 1, 1 << 20));
  if (o.no_prefix_reuse && limits.kv_cache_host_bytes > 0) {
    return fail(Errc::invalid_argument, "a host tier holds prefixes to be reused",
                "kv_cache_host_memory_bytes, no_prefix_reuse", "leave one of them out");
  }
  for (const auto& [name, value] :
       {std::pair("rope_theta", build.rope_theta), std::pair("rope_scaling_factor", build.rope_scaling_factor)}) {
    if (value && !(*value > 0)) return fail(Errc::invalid_argument, "expected a number above 0", name);
  }
  if (build.tokens_per_block != 16 && build.tokens_per_block != 32 && build.tokens_per_block != 64) {
    return fail(Errc::invalid_argument, fmt::format("blocks of {} tokens are not known", build.tokens_per_block),
                "tokens_per_block", "choose 16, 32 or 64");
  }
  PINION_OK(one_of("load_format", build.load_format, {"auto", "safetensors", "dummy"}));
  return one_of("batch_scheduler_policy", o.policy, {"max_utilization", "guaranteed_no_evict"});
}

LoopOptions loop_options(const Options& o, const ExecutorOptions& limits) {
  return {.max_batch_size = limits.max_batch_size,
          .max_num_tokens = limits.max_num_tokens,
          .max_seq_len = limits.max_seq_len,
          .max_queue = o.max_queue,
          .chunk_tokens = o.chunk_tokens,
          .policy = o.policy == "guaranteed_no_evict" ? SchedulerPolicy::guaranteed_no_evict
                                                      : SchedulerPolicy::max_utilization,
          .prefix_reuse = !o.no_prefix_reuse};
}

}  // namespace pinion::python
