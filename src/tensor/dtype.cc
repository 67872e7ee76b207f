#include "tensor/dtype.h"

#include <array>

namespace pinion {
namespace {

struct Row {
  DType type;
  int bits;
  std::string_view safetensors, name;
};

constexpr std::array<Row, 22> kRows{{
    {DType::f32, 32, "F32", "float32"},
    {DType::f16, 16, "F16", "float16"},
    {DType::bf16, 16, "BF16", "bfloat16"},
    {DType::f64, 64, "F64", "float64"},
    {DType::i64, 64, "I64", "int64"},
    {DType::i32, 32, "I32", "int32"},
    {DType::i16, 16, "I16", "int16"},
    {DType::i8, 8, "I8", "int8"},
    {DType::u64, 64, "U64", "uint64"},
    {DType::u32, 32, "U32", "uint32"},
    {DType::u16, 16, "U16", "uint16"},
    {DType::u8, 8, "U8", "uint8"},
    {DType::boolean, 8, "BOOL", "bool"},
    {DType::f8_e4m3, 8, "F8_E4M3", "float8_e4m3fn"},
    {DType::f8_e5m2, 8, "F8_E5M2", "float8_e5m2"},
    {DType::f8_e8m0, 8, "F8_E8M0", "float8_e8m0fnu"},
    {DType::f8_e4m3fnuz, 8, "F8_E4M3FNUZ", "float8_e4m3fnuz"},
    {DType::f8_e5m2fnuz, 8, "F8_E5M2FNUZ", "float8_e5m2fnuz"},
    {DType::f6_e2m3, 6, "F6_E2M3", "float6_e2m3fn"},
    {DType::f6_e3m2, 6, "F6_E3M2", "float6_e3m2fn"},
    {DType::f4, 4, "F4", "float4_e2m1fn"},
    {DType::c64, 64, "C64", "complex64"},
}};

const Row& row(DType type) {
  return kRows[static_cast<size_t>(type)];
}

}  // namespace

int bit_size(DType type) {
  return row(type).bits;
}
std::string_view safetensors_name(DType type) {
  return row(type).safetensors;
}
std::string_view name(DType type) {
  return row(type).name;
}

std::optional<DType> dtype_from_safetensors(std::string_view text) {
  for (const Row& r : kRows) {
    if (r.safetensors == text) return r.type;
  }
  return std::nullopt;
}

std::optional<DType> dtype_from_name(std::string_view text) {
  if (text.starts_with("torch.")) text.remove_prefix(6);
  if (text == "bf16") return DType::bf16;
  if (text == "fp16" || text == "half" || text == "f16") return DType::f16;
  if (text == "fp32" || text == "float" || text == "f32") return DType::f32;
  for (const Row& r : kRows) {
    if (r.name == text) return r.type;
  }
  return std::nullopt;
}

}  // namespace pinion
