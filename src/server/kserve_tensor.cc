#include "server/kserve_tensor.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

struct TypeRow {
  std::string_view name;
  size_t bytes;
};
constexpr std::array<TypeRow, 14> kTypes{{{"BOOL", 1},
                                          {"UINT8", 1},
                                          {"UINT16", 2},
                                          {"UINT32", 4},
                                          {"UINT64", 8},
                                          {"INT8", 1},
                                          {"INT16", 2},
                                          {"INT32", 4},
                                          {"INT64", 8},
                                          {"FP16", 2},
                                          {"BF16", 2},
                                          {"FP32", 4},
                                          {"FP64", 8},
                                          {"BYTES", 0}}};

bool is_real(KserveType t) {
  return t >= KserveType::fp16 && t <= KserveType::fp64;
}
bool is_signed(KserveType t) {
  return t >= KserveType::int8 && t <= KserveType::int64;
}

Status wrong(const KserveTensor& tensor, const std::string& what) {
  return fail(Errc::invalid_argument, fmt::format("input '{}': {}", tensor.name, what));
}

Status wrong_count(const KserveTensor& tensor, int64_t got) {
  return wrong(tensor, fmt::format("{} elements, its shape wants {}", got, tensor.count()));
}

bool whole_number_fits(KserveType type, const OrderedJson& v) {
  if (type == KserveType::uint64) return v.is_number_unsigned();
  if (v.is_number_unsigned() && v.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return false;
  const auto n = v.get<int64_t>();
  const int bits = static_cast<int>(element_bytes(type)) * 8;
  if (bits == 64) return true;
  const int64_t most = is_signed(type) ? (int64_t{1} << (bits - 1)) - 1 : (int64_t{1} << bits) - 1;
  return n <= most && n >= (is_signed(type) ? -most - 1 : 0);
}

// Appends one scalar; `data` comes from a depth-limited reader, so that nesting is bounded.
Status append(KserveTensor& tensor, const OrderedJson& v) {
  if (auto* strings = std::get_if<std::vector<std::string>>(&tensor.values)) {
    if (!v.is_string()) return wrong(tensor, "expected strings");
    strings->push_back(v.get<std::string>());
  } else if (auto* reals = std::get_if<std::vector<double>>(&tensor.values)) {
    if (!v.is_number()) return wrong(tensor, "expected numbers");
    reals->push_back(v.get<double>());
  } else {
    auto& numbers = std::get<std::vector<int64_t>>(tensor.values);
    if (tensor.type == KserveType::boolean) {
      const bool number = v.is_number_integer() && (v == 0 || v == 1);  // clients send both
      if (!v.is_boolean() && !number) return wrong(tensor, "expected booleans");
      numbers.push_back(v.is_boolean() ? static_cast<int64_t>(v.get<bool>()) : v.get<int64_t>());
    } else {
      if (!v.is_number_integer()) return wrong(tensor, "expected whole numbers");
      if (!whole_number_fits(tensor.type, v)) return wrong(tensor, v.dump() + " does not fit its datatype");
      numbers.push_back(v.is_number_unsigned() ? static_cast<int64_t>(v.get<uint64_t>()) : v.get<int64_t>());
    }
  }
  return {};
}

Status flatten(KserveTensor& tensor, const OrderedJson& data, int64_t most) {
  if (!data.is_array()) return append(tensor, data);
  for (const OrderedJson& v : data) {
    const auto size = std::visit([](const auto& values) { return static_cast<int64_t>(values.size()); }, tensor.values);
    if (size > most) return wrong_count(tensor, size);
    PINION_OK(flatten(tensor, v, most));
  }
  return {};
}

void clear_values(KserveTensor& tensor) {
  if (tensor.type == KserveType::bytes) {
    tensor.values = std::vector<std::string>();
  } else if (is_real(tensor.type)) {
    tensor.values = std::vector<double>();
  } else {
    tensor.values = std::vector<int64_t>();
  }
}

int64_t whole_number_at(KserveType type, const char* p) {
  const size_t bytes = element_bytes(type);
  uint64_t bits = 0;
  std::memcpy(&bits, p, bytes);
  const int unused = 64 - 8 * static_cast<int>(bytes);
  return is_signed(type) ? static_cast<int64_t>(bits << unused) >> unused : static_cast<int64_t>(bits);
}

double real_at(KserveType type, const char* p) {
  if (type == KserveType::fp64) {
    double v;
    std::memcpy(&v, p, 8);
    return v;
  }
  const DType dtype = type == KserveType::fp32 ? DType::f32 : type == KserveType::fp16 ? DType::f16 : DType::bf16;
  return load_f32(p, dtype, 0);
}

}  // namespace

std::string_view name(KserveType type) {
  return kTypes[static_cast<size_t>(type)].name;
}

size_t element_bytes(KserveType type) {
  return kTypes[static_cast<size_t>(type)].bytes;
}

Result<KserveType> parse_kserve_type(std::string_view text) {
  for (size_t i = 0; i < kTypes.size(); ++i) {
    if (kTypes[i].name == text) return static_cast<KserveType>(i);
  }
  return fail(Errc::invalid_argument, fmt::format("there is no datatype '{}'", text));
}

int64_t KserveTensor::count() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

Status check_shape(const KserveTensor& tensor, int64_t most_elements) {
  int64_t n = 1;
  if (tensor.shape.empty()) return wrong(tensor, "the shape is empty");
  for (const int64_t d : tensor.shape) {
    if (d < 0) return wrong(tensor, "a negative size in the shape");
    if (d > most_elements || (n *= d) > most_elements)  // both factors are small: no overflow
      return wrong(tensor, fmt::format("more than {} elements", most_elements));
  }
  return {};
}

Status read_json_values(KserveTensor& tensor, const OrderedJson& data) {
  if (tensor.type == KserveType::fp16 || tensor.type == KserveType::bf16) {
    return wrong(tensor, "FP16 and BF16 travel only as binary data");
  }
  clear_values(tensor);
  if (!data.is_array()) return wrong(tensor, "'data' is not an array");
  PINION_OK(flatten(tensor, data, tensor.count()));
  const auto size = std::visit([](const auto& values) { return static_cast<int64_t>(values.size()); }, tensor.values);
  return size == tensor.count() ? Status() : wrong_count(tensor, size);
}

Status read_binary_values(KserveTensor& tensor, std::string_view bytes) {
  clear_values(tensor);
  const int64_t count = tensor.count();
  if (auto* strings = std::get_if<std::vector<std::string>>(&tensor.values)) {
    for (int64_t i = 0; i < count; ++i) {
      uint32_t length = 0;
      if (bytes.size() < sizeof length) return wrong_count(tensor, i);
      std::memcpy(&length, bytes.data(), sizeof length);
      bytes.remove_prefix(sizeof length);
      if (bytes.size() < length) return wrong(tensor, "a string goes past the end of the data");
      strings->emplace_back(bytes.substr(0, length));
      bytes.remove_prefix(length);
    }
    return bytes.empty() ? Status() : wrong(tensor, fmt::format("{} bytes are left over", bytes.size()));
  }
  const size_t each = element_bytes(tensor.type);
  if (bytes.size() != each * static_cast<size_t>(count)) {
    return wrong(tensor, fmt::format("{} bytes, its shape wants {}", bytes.size(), each * static_cast<size_t>(count)));
  }
  for (int64_t i = 0; i < count; ++i) {
    const char* p = bytes.data() + static_cast<size_t>(i) * each;
    if (auto* reals = std::get_if<std::vector<double>>(&tensor.values)) {
      reals->push_back(real_at(tensor.type, p));
    } else {
      std::get<std::vector<int64_t>>(tensor.values).push_back(whole_number_at(tensor.type, p));
    }
  }
  return {};
}

OrderedJson json_values(const KserveTensor& tensor) {
  OrderedJson out = OrderedJson::array();
  if (const auto* strings = std::get_if<std::vector<std::string>>(&tensor.values)) {
    for (const auto& s : *strings) out.push_back(s);
  } else if (const auto* reals = std::get_if<std::vector<double>>(&tensor.values)) {
    for (const double v : *reals) out.push_back(v);
  } else {
    for (const int64_t v : std::get<std::vector<int64_t>>(tensor.values)) {
      if (tensor.type == KserveType::boolean) {
        out.push_back(v != 0);
      } else if (tensor.type == KserveType::uint64) {
        out.push_back(static_cast<uint64_t>(v));
      } else {
        out.push_back(v);
      }
    }
  }
  return out;
}

std::string binary_values(const KserveTensor& tensor) {
  std::string out;
  const auto append_bits = [&](const void* p, size_t n) { out.append(static_cast<const char*>(p), n); };
  if (const auto* strings = std::get_if<std::vector<std::string>>(&tensor.values)) {
    for (const auto& s : *strings) {
      const auto length = static_cast<uint32_t>(s.size());
      append_bits(&length, sizeof length);
      out += s;
    }
  } else if (const auto* reals = std::get_if<std::vector<double>>(&tensor.values)) {
    for (const double v : *reals) {
      if (tensor.type == KserveType::fp64) {
        append_bits(&v, 8);
      } else {
        check(tensor.type == KserveType::fp32, "no answer holds 16-bit floats");
        const auto f = static_cast<float>(v);
        append_bits(&f, 4);
      }
    }
  } else {
    for (const int64_t v : std::get<std::vector<int64_t>>(tensor.values)) append_bits(&v, element_bytes(tensor.type));
  }
  return out;
}

}  // namespace pinion
