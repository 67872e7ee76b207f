// Typed copies of a checkpoint's tensors with their shapes checked, and the bit streams that tools pack integers into.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace pinion {

class QuantTensors {  // borrows the checkpoint
 public:
  explicit QuantTensors(const Checkpoint& checkpoint) : checkpoint_(&checkpoint) {}

  bool has(std::string_view name) const { return checkpoint_->contains(name); }
  bool has_dtype(std::string_view name, DType type) const;
  // The tensor, of that rank and type. Errors name it.
  Result<TensorRef> get(const std::string& name, DType type, int rank) const;

  // Floats of any type, e4m3 and e8m0 included; `count` elements in any shape.
  Result<std::vector<float>> floats(const std::string& name, int64_t count) const;
  Result<float> scalar(const std::string& name) const;
  Result<std::vector<int32_t>> ints(const std::string& name, const Shape& shape) const;  // I32 or I64
  Result<std::vector<uint8_t>> bytes(const std::string& name, DType type, const Shape& shape) const;

  Error wrong(const std::string& name, std::string_view what) const;  // corrupt, with the directory

 private:
  const Checkpoint* checkpoint_;
};

// Element i of a stream of 32-bit words, `bits` bits each from the lowest bit on; elements may cross words. `stride` is
// the distance between the stream's words.
inline uint32_t stream_bits(const int32_t* words, int64_t stride, int64_t i, int bits) {
  const int64_t bit = i * bits, word = bit / 32;
  const int shift = static_cast<int>(bit % 32);
  uint64_t value = static_cast<uint32_t>(words[word * stride]);
  if (shift + bits > 32) value |= static_cast<uint64_t>(static_cast<uint32_t>(words[(word + 1) * stride])) << 32;
  return static_cast<uint32_t>(value >> shift) & ((1u << bits) - 1);
}

}  // namespace pinion
