// What the inputs of each linear are over a calibration set: a sample of rows, the largest magnitudes, and how many
// there were. Memory is bounded by the sample, whatever the set's size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "quant/quant_format.h"
#include "tensor/tensor.h"

namespace pinion {

struct InputStatistics {
  int64_t cols = 0, seen = 0;        // rows that went by
  float absmax = 0;                  // over all rows, as the columns' own
  std::vector<float> column_absmax;  // [cols]
  std::vector<float> sample;         // [up to sample_rows, cols]: every row had the same chance
  FloatMatrix inputs() const { return {sample, std::ssize(sample) / std::max<int64_t>(1, cols), cols}; }
};

class InputCollector {
 public:
  // For the graph that runs, whose linears each have one part (not fused). sample_rows: at least 1.
  InputCollector(const Graph& graph, int64_t sample_rows);
  // To be called after each node with its outputs (EngineExecutor::observe).
  void see(size_t node, std::span<const TensorView> outputs);
  // The inputs of the linear whose weight is the tensor `weight`; null: it has not run.
  const InputStatistics* find(const std::string& weight) const;
  // Scales of an fp8 KV cache, absmax / 448, by the names that checkpoints give them: "….self_attn.k_scale".
  std::map<std::string, float> kv_scales() const;

  // What was collected so far, so that an interrupted calibration goes on: save() after `texts` of them, load() gives
  // their number, and nothing where the file is of another `key` or there is none. Errors: io.
  Status save(const std::filesystem::path& file, const std::string& key, int64_t texts) const;
  Result<int64_t> load(const std::filesystem::path& file, const std::string& key);

 private:
  const Graph& graph_;
  int64_t sample_rows_;
  std::mt19937_64 random_{42};                 // the same sample every time
  std::map<int32_t, InputStatistics> values_;  // by value
  std::map<std::string, int32_t> inputs_;      // weight's tensor -> value
  std::map<int32_t, float> cached_;            // largest magnitude of the keys and values, by value
};

}  // namespace pinion
