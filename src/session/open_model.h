// From what the user calls a model to an engine on a device, loaded: an engine directory is opened; a checkpoint is
// built into the cache first, under a key of its content and the options. Errors name settings as the program's flags.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "compiler/compiler.h"
#include "engine/engine.h"
#include "runtime/engine_executor.h"
#include "runtime/engine_loop.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace pinion {

struct BuildArgs {
  std::string dtype = "auto", kv_cache_dtype = "auto", load_format = "auto", target = "cpu", isa, qformat;
  int32_t tokens_per_block = 64, threads = 0;
  bool deterministic = false, no_timing = false, expand_weights = false;
  std::vector<std::string> disabled_passes;
  std::string force_kernel;
  std::optional<double> rope_theta, rope_scaling_factor;
};

// The host's memory is shared with everything else that runs there, a GPU's is not.
inline constexpr double kHostKvFraction = 0.25, kDeviceKvFraction = 0.9;

struct LimitArgs {
  int32_t max_batch_size = 0, max_num_tokens = 0, max_seq_len = 0;  // 0: the verb's default
  double kv_cache_fraction = 0;    // of the free memory, at most; 0: kHostKvFraction, or kDeviceKvFraction on a GPU
  int32_t kv_cache_tokens = 0;     // tokens that the KV cache holds at most; 0: no limit of its own
  size_t kv_cache_host_bytes = 0;  // of the KV cache's host tier; 0: none
};

struct ModelArgs {
  std::string model, tokenizer;
  BuildArgs build;
  LimitArgs limits;
};

Result<BuildOptions> build_options(const BuildArgs& args);
Result<std::unique_ptr<Device>> open_device(const BuildArgs& args, const Backend*& backend);
Result<Checkpoint> open_checkpoint(const std::string& model, const std::string& load_format);
std::filesystem::path cache_dir();  // $PINION_CACHE, $XDG_CACHE_HOME/pinion or ~/.cache/pinion

struct OpenModel {
  const Backend* backend = nullptr;
  std::unique_ptr<Device> device;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<EngineExecutor> executor;
  std::unique_ptr<Tokenizer> tokenizer;  // null: none found
  std::optional<ChatTemplate> chat_template;
  double open_seconds = 0;
};

// The engine alone: opened, or built into the cache, or re-selected for this device.
Result<std::unique_ptr<Engine>> open_engine(const ModelArgs& args, const Backend& backend, Device& device);
// Everything, loaded. `defaults` fills the limits that the user left open.
Result<OpenModel> open_model(const ModelArgs& args, ExecutorOptions defaults);
// Limits in force and the KV pool's blocks for them: the pool holds batch × length, at most the given part of free
// memory.
Result<ExecutorOptions> executor_options(const Engine& engine, const Backend& backend, const Device& device,
                                         const LimitArgs& limits, ExecutorOptions defaults);
// The directory whose tokenizer files serve the model. Empty: none.
std::filesystem::path tokenizer_dir(const ModelArgs& args, const Engine* engine);

size_t free_memory_bytes();
// What a request without sampling fields gets: generation_config.json of the model, else greedy for the command line.
SamplingParams default_sampling(const std::filesystem::path& dir, bool greedy_when_silent);

}  // namespace pinion
