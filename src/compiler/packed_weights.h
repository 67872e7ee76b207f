// Quantised weights as kernels read them, packed: from a quantised checkpoint as they are, or encoded on the way.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "compiler/quantized_weights.h"
#include "graph/graph.h"
#include "quant/quant_format.h"

namespace pinion {

// The format that a build can quantise to by itself: one that needs no calibration. int4_awq and int8_sq have the
// layouts of int4_wo and int8_wo, and mean those for dummy weights, where there is nothing to calibrate. Errors:
// invalid_argument.
Result<const QuantFormat*> build_format(const std::string& qformat, bool dummy);

// The bytes of a matrix that a build quantises so. Errors: unsupported.
Result<uint64_t> packed_bytes(const QuantFormat& format, int64_t rows, int64_t cols);

// Whether a build quantises the node's matrix: linears but the head, which decides every token, and routers, which are
// tiny.
bool is_quantizable(const Graph& graph, const Node& node);

class WeightPacker {
 public:
  // Why no kernel reads this weight so; empty: some does.
  using WhyNot = std::function<std::string(const WeightSpec&)>;

  // format: what float weights are encoded as; null: they stay floats. Borrows all three.
  WeightPacker(const QuantizedCheckpoint& checkpoint, const QuantFormat* format, ThreadPool& pool);

  // Packs all parts of `use`, and makes `spec` packed. False: it stays as it is, and why() says the reason, which is
  // empty for a weight that is not quantised at all. Errors: what reading the checkpoint gives; unsupported, where a
  // weight that the build is to quantise cannot be.
  Result<bool> pack(const WeightUse& use, WeightSpec& spec, const WhyNot& why_not, std::vector<std::byte>& out);
  const std::string& why() const { return why_; }

 private:
  Result<std::optional<std::vector<QuantizedPart>>> parts_of(const WeightPart& part, int64_t cols);
  Result<std::vector<QuantizedPart>> encode(const WeightPart& part, int64_t cols);

  QuantizedWeights quantized_;
  const QuantizedCheckpoint& checkpoint_;
  const QuantFormat* format_;
  ThreadPool& pool_;
  std::string why_;
};

// A packed weight's values as its dtype, dense: for a device whose kernels read none packed.
std::vector<std::byte> expand_packed(const WeightSpec& spec, std::span<const std::byte> packed);

// Any bytes that a layout can hold, with scales near one: what kernels are timed on.
void fill_packed(const RowLayout& layout, std::span<std::byte> out);

}  // namespace pinion
