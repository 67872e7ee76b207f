// What the inputs of each linear are over a calibration set: a sample of rows, the largest magnitudes, and how many
// there were; of an expert, those of the tokens that were sent to it. Memory is bounded by the samples, whatever the
// set's size.
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
  // An expert that fewer rows reached is calibrated with what all experts of its layer saw: so few say less about it.
  static constexpr int64_t kLeastExpertRows = 16;

  // For the graph that runs, whose linears each have one part (not fused). sample_rows: at least 1; the experts of a
  // layer share as many for each of a token's experts, 64 each at least.
  InputCollector(const Graph& graph, int64_t sample_rows);
  // To be called after each node with its outputs (EngineExecutor::observe).
  void see(size_t node, std::span<const TensorView> outputs);
  // The inputs of the linear whose weight is the tensor `weight`; null: it has not run. Of a tensor that stacks a
  // layer's experts: what all of them saw.
  const InputStatistics* find(const std::string& weight) const;
  // What all experts of that linear's layer saw; of any other linear as find().
  const InputStatistics* find_layer(const std::string& weight) const;
  // Scales of an fp8 KV cache, absmax / 448, by the names that checkpoints give them: "….self_attn.k_scale".
  std::map<std::string, float> kv_scales() const;

  // What was collected so far, so that an interrupted calibration goes on: save() after `texts` of them, load() gives
  // their number, and nothing where the file is of another `key` or there is none. Errors: io.
  Status save(const std::filesystem::path& file, const std::string& key, int64_t texts) const;
  Result<int64_t> load(const std::filesystem::path& file, const std::string& key);

 private:
  struct Key {
    int32_t value = 0, expert = kAll;  // kAll: every row, whatever expert it goes to
    auto operator<=>(const Key&) const = default;
  };
  static constexpr int32_t kAll = -1;
  // The inputs of a layer's experts: rows of x, and which experts they go to. What comes first in a step is kept until
  // the other is there.
  struct Routed {
    Value x, ids;
    MoeLinear op;
    bool x_first = false;
    std::vector<float> rows;
    std::vector<int32_t> experts;
  };
  void add_row(InputStatistics& s, int64_t sample_rows, const float* row);
  void add_rows(const Key& key, const TensorView& rows);
  void add_routed(const Routed& r, std::span<const float> rows, std::span<const int32_t> experts);
  const InputStatistics* at(const Key& key, int64_t least) const;

  const Graph& graph_;
  int64_t sample_rows_;
  std::mt19937_64 random_{42};  // the same sample every time
  std::map<Key, InputStatistics> values_;
  std::map<std::string, Key> inputs_;  // by the weight's tensor
  std::vector<Routed> routed_;
  std::map<int32_t, float> cached_;  // largest magnitude of the keys and values, by value
};

}  // namespace pinion
