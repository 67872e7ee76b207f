// Times linears where they will run: in a window of a model's own decode step, a few layers recorded as they follow one
// another, with caches of 1,024 tokens. Alone, and even in a chain of its own, a kernel does not show when the next one
// finds room on the multiprocessors, and that decides between kernels a few percent apart.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/engine.h"
#include "graph/graph.h"

namespace pinion {

class StepTimer {
 public:
  // Borrows all of it. Null where the graph has no window that this can run (another attention than Attention, packed
  // weights, fewer than two layers), or the device computes in the host's memory.
  static std::unique_ptr<StepTimer> create(const Graph& graph, std::span<const PackedWeight> weights,
                                           std::span<const std::vector<int32_t>> node_weights, const Backend& backend,
                                           Device& device, DType kv_dtype, int32_t block_size);
  ~StepTimer();

  size_t first_node() const { return first_; }
  size_t end_node() const { return end_; }
  // Microseconds of the window over `rows` sequences; kernels by node of the whole graph. Errors: exhausted, when the
  // device has no room for that many sequences.
  Result<double> time(std::span<const KernelChoice> kernels, int32_t rows);

 private:
  struct Step;  // what is sized by the number of sequences
  StepTimer(const Graph& graph, std::span<const PackedWeight> weights,
            std::span<const std::vector<int32_t>> node_weights, const Backend& backend, Device& device, DType kv_dtype,
            int32_t block_size);
  Status fill_weights();
  Status bind(int32_t rows);
  Result<std::unique_ptr<Buffer>> zeros(size_t bytes);

  const Graph& graph_;
  std::span<const PackedWeight> weights_;
  std::span<const std::vector<int32_t>> node_weights_;
  const Backend& backend_;
  Device& device_;
  DType kv_dtype_;
  int32_t block_size_;
  std::unique_ptr<Stream> stream_;
  size_t first_ = 0, end_ = 0;
  std::map<std::string, std::vector<std::unique_ptr<Buffer>>> copies_;  // of a weight of each kind, read in turn
  std::vector<std::vector<WeightView>> views_;                          // by node of the window
  std::unique_ptr<Buffer> workspace_;
  std::unique_ptr<Step> step_;
};

}  // namespace pinion
