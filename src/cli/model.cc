#include "cli/model.h"

#include <cstdlib>

namespace pinion::cli {

void add_build_options(CLI::App& app, BuildArgs& a) {
  app.add_option("--target", a.target, "backend: cpu, cuda, or reference (scalar, slow)")->capture_default_str();
  app.add_option("--dtype", a.dtype, "dtype of the weights: auto, float32, float16, bfloat16")->capture_default_str();
  app.add_option("--kv_cache_dtype", a.kv_cache_dtype,
                 "dtype of the KV cache: auto (like the weights), float32, float16, bfloat16, fp8, int8")
      ->capture_default_str();
  app.add_option("--qformat", a.qformat,
                 "quantise the linears of a float checkpoint while building, without calibration: fp8, int8_wo, "
                 "int4_wo, nvfp4, mxfp4");
  app.add_flag("--expand_weights", a.expand_weights, "expand quantised weights to --dtype, as if no kernel read them");
  app.add_option("--tokens_per_block", a.tokens_per_block, "tokens in a KV block: 16, 32 or 64")->capture_default_str();
  app.add_option("--load_format", a.load_format, "auto, or dummy: pseudo-random weights from config.json alone")
      ->check(CLI::IsMember({"auto", "safetensors", "dummy"}))
      ->capture_default_str();
  app.add_option("--rope_theta", a.rope_theta, "override the rotary base")->check(CLI::PositiveNumber);
  app.add_option("--rope_scaling_factor", a.rope_scaling_factor, "override the rotary scaling factor")
      ->check(CLI::PositiveNumber);
  app.add_flag("--deterministic", a.deterministic, "results do not depend on what else is in the batch");
  app.add_flag("--no_timing", a.no_timing, "choose kernels by estimate, without timing them");
  app.add_option("--disable_pass", a.disabled_passes, "a compiler pass to leave out (repeatable; all: every one)");
  app.add_option("--force_kernel", a.force_kernel, "prefer kernels whose name contains this");
  app.add_option("--threads", a.threads, "CPU threads; 0: all")->check(CLI::Range(0, 1024))->capture_default_str();
  app.add_option("--isa", a.isa, "force the instruction set: amx, avx512, avx2 or scalar");
}

void add_limit_options(CLI::App& app, LimitArgs& a) {
  app.add_option("--max_batch_size", a.max_batch_size, "sequences in one step")->check(CLI::Range(1, 65536));
  app.add_option("--max_num_tokens", a.max_num_tokens, "tokens in one step")->check(CLI::Range(1, 1 << 20));
  app.add_option("--max_seq_len", a.max_seq_len, "prompt and output together")->check(CLI::Range(1, 1 << 30));
  app.add_option("--kv_cache_free_memory_fraction,--kv_cache_free_gpu_memory_fraction", a.kv_cache_fraction,
                 "most of the free memory that the KV cache may take; 0.25 of the host's or 0.9 of a GPU's otherwise")
      ->check(CLI::Range(0.0001, 0.99));
  app.add_option("--kv_cache_max_tokens", a.kv_cache_tokens, "most tokens that the KV cache may hold")
      ->check(CLI::Range(1, 1 << 30));
}

void add_host_tier_option(CLI::App& app, LimitArgs& a) {
  app.add_option("--kv_cache_host_memory_bytes", a.kv_cache_host_bytes,
                 "host memory for KV blocks that leave the cache: prompts find them there; 0: none")
      ->check(CLI::Range(size_t{0}, size_t{1} << 50))
      ->capture_default_str();
}

void add_model_options(CLI::App& app, ModelArgs& a) {
  app.add_option("model", a.model, "an engine, a checkpoint, or org/name in the local Hugging Face cache")->required();
  app.add_option("--tokenizer", a.tokenizer, "directory of the tokenizer files, when not the model's");
  add_build_options(app, a.build);
  add_limit_options(app, a.limits);
}

Result<std::vector<int32_t>> parse_ids(const std::string& text) {
  std::vector<int32_t> ids;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    std::string item = text.substr(at, end - at);
    std::erase(item, ' ');
    char* last = nullptr;
    const long value = std::strtol(item.c_str(), &last, 10);
    if (item.empty() || *last || value < 0 || value > INT32_MAX) {
      return fail(Errc::invalid_argument, "\"" + item + "\" is no token id", "--input_ids", "write ids as 1,2,3");
    }
    ids.push_back(static_cast<int32_t>(value));
    at = end + 1;
  }
  return ids;
}

}  // namespace pinion::cli
