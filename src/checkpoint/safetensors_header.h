// The JSON header of a safetensors file, read by events straight into TensorInfo: a hostile header of 100 MB with a
// million entries costs no more memory than its entries, and every number is known to be a non-negative integer.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "base/result.h"
#include "checkpoint/safetensors.h"

namespace pinion {

struct SafetensorsHeader {
  std::map<std::string, TensorInfo, std::less<>> tensors;
  SafetensorsMetadata metadata;
};

// `text` is the header alone, `data_bytes` the size of what follows it; `where` names the file. Checks everything that
// the format demands: after it, the tensors cover the data buffer exactly, without holes and without overlap.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view text, uint64_t data_bytes, std::string_view where);

// Bytes of a tensor, or nullopt when the product overflows, a dimension is negative, or the bits fill no whole bytes.
std::optional<uint64_t> tensor_bytes(DType dtype, std::span<const int64_t> shape);

// A name from an untrusted file as it may stand in a message: in quotes, escaped, shortened.
std::string shown_name(std::string_view name);

}  // namespace pinion
