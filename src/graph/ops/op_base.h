// What every op header shares: the symbolic shape of a value, and activation and sharding names.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace pinion {

// Values are matrices [rows, width]; the rows are known when a batch is bound, the width at build.
enum class Rows : uint8_t { tokens, outputs };  // every token of the step | the rows whose logits are wanted

struct ValueSpec {
  Rows rows = Rows::tokens;
  int64_t width = 0;
  DType dtype = DType::f32;
  bool operator==(const ValueSpec&) const = default;
};

// A shape rule: the outputs' specs from the inputs', or what is wrong with the inputs.
using ShapeResult = Result<std::vector<ValueSpec>>;
inline Error shape_error(std::string what) {
  return fail(Errc::internal, what);
}

enum class Activation : uint8_t { silu, gelu, gelu_tanh, relu, relu2, quick_gelu };
constexpr std::array<std::string_view, 6> enum_names(Activation) {
  return {"silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu"};
}

// How a weight divides over tensor-parallel ranks: by its rows (column parallel), by its columns (row parallel; the
// outputs are summed), or not at all.
enum class Shard : uint8_t { none, rows, cols };
constexpr std::array<std::string_view, 3> enum_names(Shard) {
  return {"none", "rows", "cols"};
}

}  // namespace pinion
