// The compiler: checkpoint and graph in, engine out. The stages, each in its own file:
//   passes/ fuse the graph → plan_memory → select_kernels (estimate, then time) → weight_writer → the engine file
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "engine/engine.h"
#include "models/families.h"
#include "quant/quantized_checkpoint.h"

namespace pinion {

struct BuildOptions {
  std::optional<DType> dtype;     // of the matrix weights; unset: the checkpoint's
  std::optional<DType> kv_dtype;  // unset: like dtype
  int32_t block_size = 64;        // tokens per KV block: 16, 32 or 64
  bool deterministic = false;     // --deterministic: one linear kernel per weight for all batch sizes
  bool time_kernels = true;       // false: by estimate alone
  std::vector<std::string> disabled_passes;
  ModelOverrides overrides;
  std::filesystem::path tuning_cache;  // empty: none
  std::string qformat;                 // quantise linears so, without calibration; empty: as the checkpoint has them
  bool packed = true;                  // false: expand quantised weights to dtype even where kernels read them packed
  std::string force_kernel;            // only kernels whose name contains this, where one accepts (tests, diff)
};

struct BuildReport {
  struct Stage {
    std::string name;
    double seconds;
  };
  std::vector<Stage> stages;
  double write_wait_seconds = 0;  // of packing weights: waiting until those before were in the file
  std::string explanation;        // --explain: every kernel considered, with its reason, estimate and time
  uint64_t weight_bytes = 0;
  struct Weights {
    int32_t count = 0;
    uint64_t bytes = 0;
  };
  std::map<std::string, Weights> weights;  // matrices and vectors by what they are stored as: str(WeightSpec)
  int32_t tuned = 0, from_cache = 0;       // problems timed now, and taken from the tuning cache
};

// Builds `checkpoint` for `device` into the directory `out` (replaced whole when it exists).
Result<BuildReport> build_engine(const Checkpoint& checkpoint, const Backend& backend, Device& device,
                                 const BuildOptions& options, const std::filesystem::path& out);

// Re-selects kernels of an existing engine for another device or other options: writes a new engine with the same
// graph and weights.
Result<BuildReport> retarget(const Engine& engine, const Backend& backend, Device& device, const BuildOptions& options,
                             const std::filesystem::path& out);

struct Pass {
  std::string_view name;
  void (*run)(Graph&);
};
std::span<const Pass> passes();  // in order; each can be disabled by name
// Runs the passes that are not disabled, verifying after each. An unknown name in `disabled` is refused.
Status run_passes(Graph& graph, std::span<const std::string> disabled, std::vector<BuildReport::Stage>* stages);

// Makes the values between ops `narrow` where that costs no accuracy worth having (type_values.cc says where not).
void type_values(Graph& graph, DType narrow);

ArenaPlan plan_memory(const Graph& graph);

// Chooses a kernel per node and bucket. Fails when a node has no kernel that accepts it, with every kernel's reason.
Result<std::vector<Program>> select_kernels(const Graph& graph, std::span<const PackedWeight> weights,
                                            std::span<const std::vector<int32_t>> node_weights, const Backend& backend,
                                            Device& device, const BuildOptions& options, DType kv_dtype,
                                            BuildReport& report);

// Sets the layers' scales of an fp8 cache from the checkpoint's, in every place where tools put them; layers without
// keep 1. Errors: corrupt for a scale that is not positive.
Status read_kv_scales(const Checkpoint& checkpoint, Graph& graph);

// Lists the distinct weights of the graph and which node uses which; the offsets are not known yet.
void list_weights(const Graph& graph, DType dtype, std::vector<PackedWeight>& weights,
                  std::vector<std::vector<int32_t>>& node_weights, std::vector<const WeightUse*>& uses);
}  // namespace pinion
