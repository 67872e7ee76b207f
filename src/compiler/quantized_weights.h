// Weights that another tool quantised, expanded to floats row by row for kernels that read no packed layout.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "graph/graph.h"
#include "quant/quantized_checkpoint.h"

namespace pinion {

// One part of a weight inside a quantised matrix.
struct QuantizedPart {
  std::shared_ptr<const QuantizedMatrix> matrix;
  FusedRows rows;      // which of the rows of one of its stacked matrices
  int64_t offset = 0;  // rows before that matrix

  // Row `row` of the part as `dtype`, all columns, to `out` (unaligned). Thread-safe.
  void read(int64_t row, DType dtype, std::byte* out) const;
};

// Finds parts in a quantised checkpoint. Keeps the matrix it read last, because experts and fused linears lie in one.
class QuantizedWeights {
 public:
  explicit QuantizedWeights(const QuantizedCheckpoint& checkpoint) : checkpoint_(&checkpoint) {}
  // nullopt: the part is not quantised. Errors: corrupt when the matrix has not the rows and `cols` that the graph
  // expects.
  Result<std::optional<QuantizedPart>> find(const WeightPart& part, int64_t cols);

 private:
  Result<std::shared_ptr<const QuantizedMatrix>> read(const std::string& tensor);

  const QuantizedCheckpoint* checkpoint_;
  std::string last_prefix_;
  std::shared_ptr<const QuantizedMatrix> last_;
};

}  // namespace pinion
