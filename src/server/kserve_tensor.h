// The tensors of the KServe v2 inference protocol (Open Inference Protocol, "Tensor Data") on the host: what JSON, the
// binary extension and gRPC's raw contents carry alike. Row-major, little-endian.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace pinion {

enum class KserveType : uint8_t {
  boolean,
  uint8,
  uint16,
  uint32,
  uint64,
  int8,
  int16,
  int32,
  int64,
  fp16,
  bf16,
  fp32,
  fp64,
  bytes
};
std::string_view name(KserveType type);  // "BOOL", "INT32", "BYTES", …
Result<KserveType> parse_kserve_type(std::string_view text);
size_t element_bytes(KserveType type);  // 0 for bytes: each element has its own length

// Whole numbers and booleans are int64_t (UINT64 by its bits), fractions double, BYTES strings.
using KserveValues = std::variant<std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;

struct KserveTensor {
  std::string name;
  KserveType type = KserveType::bytes;
  std::vector<int64_t> shape;
  KserveValues values;

  int64_t count() const;  // the product of the shape
};

// Errors name the tensor: wrong number of elements, a value outside the type's range, a type that JSON cannot carry.
Status check_shape(const KserveTensor& tensor, int64_t most_elements);
Status read_json_values(KserveTensor& tensor, const OrderedJson& data);  // nested or flat
Status read_binary_values(KserveTensor& tensor, std::string_view bytes);
OrderedJson json_values(const KserveTensor& tensor);  // flat
std::string binary_values(const KserveTensor& tensor);

}  // namespace pinion
