// Element types, with the names safetensors uses (https://github.com/huggingface/safetensors, "Format").
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace pinion {

enum class DType : uint8_t {
  f32,
  f16,
  bf16,
  f64,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  f6_e2m3,
  f6_e3m2,
  f4,
  c64,
};

int bit_size(DType type);  // bits of one element
inline size_t byte_size(DType type) {
  return bit_size(type) / 8;
}  // whole-byte types only
std::string_view safetensors_name(DType type);  // "BF16"
std::optional<DType> dtype_from_safetensors(std::string_view name);
std::string_view name(DType type);                            // "bfloat16"
std::optional<DType> dtype_from_name(std::string_view name);  // "bfloat16", "bf16", "torch.bfloat16"
constexpr bool is_float(DType t) {
  return t == DType::f32 || t == DType::f16 || t == DType::bf16;
}

}  // namespace pinion
