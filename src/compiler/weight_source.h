// Where a weight's rows lie in a checkpoint. Checkpoints of one family differ: with a prefix or without, several
// linears fused into one tensor or each in its own, [out, in] or [in, out]. A WeightSource settles that once for one
// part and then reads rows of the weight as the graph sees them.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "graph/graph.h"

namespace pinion {

// The name under which `checkpoint` has the tensor `name`, which may have another prefix there; empty: it has none.
std::string checkpoint_name(const Checkpoint& checkpoint, const std::string& name);

class WeightSource {
 public:
  // Finds the tensor of `part`, whose rows have `cols` columns (vectors: 1, `vector` set), and checks its shape and
  // type. The part's own name goes before the fused tensor's; each is tried with the prefixes that publishers use. A
  // dummy checkpoint has every tensor. Borrows from the checkpoint.
  static Result<WeightSource> open(const Checkpoint& checkpoint, const WeightPart& part, int64_t cols, bool vector);

  const TensorRef& tensor() const { return tensor_; }  // of the checkpoint; empty where that is a dummy
  const FusedRows& rows() const { return rows_; }      // which of its rows, or, transposed, of its columns

  // Where row `row` of the part lies in the tensor, `cols` elements of its type (unaligned); null where it does not lie
  // there so: transposed, or a dummy.
  const std::byte* row_bytes(int64_t row) const;
  // Columns [first, first + n) of row `row` of the part, as `dtype`, to `out` (unaligned). Thread-safe.
  void read(int64_t row, int64_t first, int64_t n, DType dtype, std::byte* out) const;

 private:
  std::string name_;
  TensorRef tensor_;
  FusedRows rows_;
  int64_t cols_ = 0, dummy_width_ = 0;
  size_t offset_ = 0;  // bytes of the tensor before this matrix, where the tensor stacks several
  bool transposed_ = false;
};

}  // namespace pinion
