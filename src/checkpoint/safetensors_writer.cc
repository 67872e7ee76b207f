// The canonical order of the reference writer: reading a file that it wrote and writing it again gives the same bytes.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_header.h"

namespace pinion {
namespace {

// Wide types first, so that each tensor lies aligned to its own element without padding between tensors.
constexpr std::array kTypeOrder{DType::u64,     DType::i64,         DType::f64,         DType::c64,     DType::f32,
                                DType::u32,     DType::i32,         DType::bf16,        DType::f16,     DType::u16,
                                DType::i16,     DType::f8_e5m2fnuz, DType::f8_e4m3fnuz, DType::f8_e8m0, DType::f8_e4m3,
                                DType::f8_e5m2, DType::i8,          DType::u8,          DType::f6_e3m2, DType::f6_e2m3,
                                DType::f4,      DType::boolean};

size_t type_rank(DType dtype) {
  return std::ranges::find(kTypeOrder, dtype) - kTypeOrder.begin();
}

Result<std::string> json_string(std::string_view text, const std::string& where) {
  try {
    return Json(std::string(text)).dump();
  } catch (const Json::exception&) {  // dump() has no other way to say that the text is not UTF-8
    return fail(Errc::invalid_argument, "the name or metadata " + shown_name(text) + " is not valid UTF-8", where);
  }
}

Result<std::string> make_header(std::span<const TensorToWrite* const> order, const SafetensorsMetadata& metadata,
                                const std::string& where) {
  std::string text = "{";
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      PINION_TRY(const std::string k, json_string(key, where));
      PINION_TRY(const std::string v, json_string(value, where));
      text += k + ":" + v + ",";
    }
    text.back() = '}';
    text += ',';
  }
  uint64_t at = 0;
  for (const TensorToWrite* t : order) {
    PINION_TRY(const std::string name, json_string(t->name, where));
    const uint64_t end = at + t->bytes();
    text += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}},", name,
                        safetensors_name(t->dtype), fmt::join(t->shape, ","), at, end);
    at = end;
  }
  if (text.back() == ',') text.pop_back();
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

Status write_tensor(AtomicFile& file, const TensorToWrite& tensor, const std::string& where) {
  const uint64_t before = file.size();
  if (const auto* bytes = std::get_if<std::span<const std::byte>>(&tensor.data)) {
    PINION_OK(file.write(*bytes));
  } else {
    PINION_OK(std::get<TensorToWrite::Producer>(tensor.data)(file));
  }
  if (file.size() - before != tensor.bytes()) {
    return fail(Errc::invalid_argument,
                fmt::format("tensor {} has {} bytes, its dtype and shape take {}", shown_name(tensor.name),
                            file.size() - before, tensor.bytes()),
                where);
  }
  return {};
}

}  // namespace

uint64_t TensorToWrite::bytes() const {
  const auto bytes = tensor_bytes(dtype, shape);
  check(bytes.has_value(), "a tensor to write has a valid shape");
  return *bytes;
}

Status write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                         const SafetensorsMetadata& metadata) {
  const std::string where = path.string();
  std::vector<const TensorToWrite*> order;
  order.reserve(tensors.size());
  uint64_t total = 0;
  for (const TensorToWrite& t : tensors) {
    const auto bytes = tensor_bytes(t.dtype, t.shape);
    if (!bytes || __builtin_add_overflow(total, *bytes, &total)) {
      return fail(Errc::invalid_argument, "tensor " + shown_name(t.name) + " has a shape that fits no file", where);
    }
    if (t.name == "__metadata__" || t.name.find('\0') != std::string::npos) {
      return fail(Errc::invalid_argument, "a tensor cannot be called " + shown_name(t.name), where);
    }
    order.push_back(&t);
  }
  std::ranges::sort(order, [](const TensorToWrite* a, const TensorToWrite* b) {
    const size_t x = type_rank(a->dtype), y = type_rank(b->dtype);
    return x != y ? x < y : a->name < b->name;
  });
  std::vector<std::string_view> names;
  for (const TensorToWrite* t : order) names.push_back(t->name);
  std::ranges::sort(names);
  if (const auto twice = std::ranges::adjacent_find(names); twice != names.end()) {
    return fail(Errc::invalid_argument, "the tensor " + shown_name(*twice) + " appears twice", where);
  }

  PINION_TRY(const std::string header, make_header(order, metadata, where));
  PINION_TRY(AtomicFile file, AtomicFile::create(path));
  std::array<std::byte, 8> length;
  for (int i = 0; i < 8; ++i) length[i] = static_cast<std::byte>(header.size() >> (8 * i));
  PINION_OK(file.write(length));
  PINION_OK(file.write(header));
  for (const TensorToWrite* t : order) PINION_OK(write_tensor(file, *t, where));
  return file.commit();
}

}  // namespace pinion
