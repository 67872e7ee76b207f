// pinion logits: float32 logits of every position, into a safetensors file with one tensor `logits` [tokens, vocab].
#include <fmt/format.h>

#include <memory>
#include <numeric>

#include "checkpoint/safetensors.h"
#include "cli/model.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace {

struct Args {
  ModelArgs model;
  std::string input_ids, output;
  int32_t chunk = 0;
};

Status run(Args a) {
  PINION_TRY(std::vector<int32_t> ids, parse_ids(a.input_ids));
  const int32_t n = static_cast<int32_t>(ids.size());
  const int32_t chunk = a.chunk > 0 ? std::min(a.chunk, n) : std::min(n, 512);
  a.model.limits.max_batch_size = 1;
  if (!a.model.limits.max_seq_len) a.model.limits.max_seq_len = n;
  PINION_TRY(OpenModel m, open_model(a.model, {.max_num_tokens = chunk, .max_outputs = chunk}));
  EngineExecutor& e = *m.executor;
  for (int32_t id : ids) {
    if (id >= e.vocab_size())
      return fail(Errc::invalid_argument, fmt::format("token {} is outside the vocabulary of {}", id, e.vocab_size()),
                  "--input_ids", "write ids below it");
  }
  if (n > e.options().max_seq_len) {
    return fail(Errc::invalid_argument,
                fmt::format("the prompt has {} tokens, the limit is {}", n, e.options().max_seq_len), "--input_ids",
                "shorten it or raise --max_seq_len");
  }
  const int32_t per_group = (n + e.block_size() - 1) / e.block_size();
  if (per_group * std::ssize(e.kv_groups()) > e.options().num_blocks) {
    return fail(Errc::exhausted, "the KV cache is too small for the prompt", "--kv_cache_free_memory_fraction",
                "raise the fraction");
  }
  std::vector<std::vector<int32_t>> tables(e.kv_groups().size(), std::vector<int32_t>(per_group));
  int32_t next = 0;
  for (auto& t : tables) {
    std::iota(t.begin(), t.end(), next);
    next += per_group;
  }
  std::vector<float> logits;
  logits.reserve(static_cast<size_t>(n) * e.vocab_size());
  for (int32_t at = 0; at < n; at += chunk) {
    const int32_t count = std::min(chunk, n - at);
    BatchSeq s{
        .tokens = std::span(ids).subspan(at, count), .past = at, .rope_length = n, .blocks = {}, .outputs = count};
    for (const auto& t : tables) s.blocks.emplace_back(t);
    const auto rows = e.forward({{s}});
    logits.insert(logits.end(), rows.begin(), rows.end());
  }
  TensorToWrite tensor;
  tensor.name = "logits";
  tensor.dtype = DType::f32;
  tensor.shape = {n, e.vocab_size()};
  tensor.data = std::as_bytes(std::span(logits));
  return write_safetensors(a.output, std::span(&tensor, 1), {});
}

}  // namespace

Verb add_logits(CLI::App& app) {
  auto a = std::make_shared<Args>();
  add_model_options(app, a->model);
  app.add_option("--input_ids", a->input_ids, "token ids, 1,2,3")->required();
  app.add_option("--output", a->output, "the safetensors file to write")->required();
  app.add_option("--chunk_tokens", a->chunk, "evaluate the prompt in pieces of this many tokens")
      ->check(CLI::Range(1, 1 << 20));
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
