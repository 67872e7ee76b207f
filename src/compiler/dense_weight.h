// A dense weight as an engine stores it: which parts it is stacked or interleaved of, found once, and any of its rows
// read from them by the host's threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "compiler/quantized_weights.h"
#include "compiler/weight_source.h"
#include "graph/graph.h"

namespace pinion {

// Rows of one part that follow one another there, and where they go.
struct RowRun {
  size_t part = 0;
  int64_t from = 0, rows = 0;   // of the part
  int64_t first = 0, step = 1;  // row from + i goes to row first + i * step of the piece that was asked for
};

class DenseWeight {
 public:
  // Finds the parts of `use` and checks their shapes; the weight is row_major, of spec's type. Borrows the checkpoint.
  // Errors: what WeightSource and QuantizedWeights say.
  static Result<DenseWeight> open(const QuantizedCheckpoint& checkpoint, const WeightUse& use, const WeightSpec& spec);

  int64_t rows() const { return rows_; }  // a vector's elements are rows of one
  int64_t cols() const { return cols_; }
  DType dtype() const { return dtype_; }
  size_t parts() const { return parts_.size(); }
  size_t row_bytes() const { return static_cast<size_t>(cols_) * byte_size(dtype_); }
  // Rows [first, first + n) to `out`: parts read, expanded where they are quantised, and converted. Errors:
  // invalid_argument for values beyond float16, with the tensor's name.
  Status pack(int64_t first, int64_t n, std::span<std::byte> out, ThreadPool& pool) const;

  std::vector<RowRun> runs(int64_t first, int64_t n) const;  // of rows [first, first + n), in the order of parts
  // The source of a part whose rows lie in a tensor as floats, one after another; null for others.
  const WeightSource* stored(size_t part) const;
  bool converts() const;  // every part is such a one, and some of them of another type than the weight

 private:
  struct Part {
    std::string name;
    std::optional<QuantizedPart> quantized;
    std::optional<WeightSource> source;  // if not quantised
    int64_t rows = 0, first = 0;         // row i goes to row first + i * step_
  };
  void read(const Part& part, int64_t row, std::byte* out) const;

  std::vector<Part> parts_;
  int64_t rows_ = 0, cols_ = 0, step_ = 1;
  DType dtype_ = DType::f32;
};

}  // namespace pinion
