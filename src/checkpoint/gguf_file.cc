#include "checkpoint/gguf_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "checkpoint/safetensors_header.h"  // shown_name

namespace pinion {
namespace {

struct TypeRow {
  GgmlType type;
  std::string_view name;
  int64_t elements, bytes;
};
constexpr std::array kTypes{TypeRow{GgmlType::f32, "F32", 1, 4},       TypeRow{GgmlType::f16, "F16", 1, 2},
                            TypeRow{GgmlType::bf16, "BF16", 1, 2},     TypeRow{GgmlType::q4_0, "Q4_0", 32, 18},
                            TypeRow{GgmlType::q8_0, "Q8_0", 32, 34},   TypeRow{GgmlType::q4_k, "Q4_K", 256, 144},
                            TypeRow{GgmlType::q5_k, "Q5_K", 256, 176}, TypeRow{GgmlType::q6_k, "Q6_K", 256, 210}};

const TypeRow* find_type(uint32_t type) {
  const auto it = std::ranges::find(kTypes, static_cast<GgmlType>(type), &TypeRow::type);
  return it == kTypes.end() ? nullptr : &*it;
}
const TypeRow& row(GgmlType type) {
  const TypeRow* r = find_type(static_cast<uint32_t>(type));
  check(r != nullptr, "a GGUF tensor has a known type");
  return *r;
}

// Far above what any model has; they bound what a header can make a reader allocate.
constexpr uint64_t kMostTensors = 1 << 20, kMostKeys = 1 << 16, kMostKey = 1 << 16, kMostElements = uint64_t{1} << 22;

// Whole UTF-8 without surrogates and overlong forms (RFC 3629): JSON can hold nothing else.
bool is_utf8(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    const auto at = [&](size_t k) { return i + k < s.size() ? static_cast<uint8_t>(s[i + k]) : uint8_t{0}; };
    const uint8_t a = at(0);
    const int n = a < 0x80 ? 1 : a < 0xc2 ? 0 : a < 0xe0 ? 2 : a < 0xf0 ? 3 : a < 0xf5 ? 4 : 0;
    if (n == 0) return false;
    for (int k = 1; k < n; ++k) {
      if ((at(k) & 0xc0) != 0x80) return false;
    }
    const uint8_t b = at(1);
    if ((a == 0xe0 && b < 0xa0) || (a == 0xed && b > 0x9f) || (a == 0xf0 && b < 0x90) || (a == 0xf4 && b > 0x8f))
      return false;
    i += n;
  }
  return true;
}

// A cursor over the header: whatever does not fit makes it fail once and for all.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  bool ok() const { return ok_; }
  uint64_t position() const { return at_; }
  uint64_t left() const { return bytes_.size() - at_; }

  template <class T>
  T number() {
    T v{};
    if (left() < sizeof(T)) {
      ok_ = false;
      return v;
    }
    std::memcpy(&v, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return v;
  }
  std::string string() {
    const auto n = number<uint64_t>();
    if (!ok_ || n > left()) {
      ok_ = false;
      return {};
    }
    std::string s(reinterpret_cast<const char*>(bytes_.data() + at_), n);
    at_ += n;
    return s;
  }

 private:
  std::span<const std::byte> bytes_;
  uint64_t at_ = 0;
  bool ok_ = true;
};

enum ValueType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

// One value that is no array; nullopt: the type is unknown, or the text is no UTF-8.
std::optional<Json> read_scalar(Reader& r, uint32_t type) {
  switch (type) {
    case kU8:
      return Json(r.number<uint8_t>());
    case kI8:
      return Json(r.number<int8_t>());
    case kU16:
      return Json(r.number<uint16_t>());
    case kI16:
      return Json(r.number<int16_t>());
    case kU32:
      return Json(r.number<uint32_t>());
    case kI32:
      return Json(r.number<int32_t>());
    case kF32:
      return Json(r.number<float>());
    case kBool:
      return Json(r.number<uint8_t>() != 0);
    case kU64:
      return Json(r.number<uint64_t>());
    case kI64:
      return Json(r.number<int64_t>());
    case kF64:
      return Json(r.number<double>());
    case kString: {
      std::string s = r.string();
      if (!is_utf8(s)) return std::nullopt;
      return Json(std::move(s));
    }
    default:
      return std::nullopt;
  }
}

Error cut_short(const std::string& where) {
  return fail(Errc::corrupt, "the file ends within its header", where, "fetch it again");
}

Result<Json> read_value(Reader& r, uint32_t type, const std::string& key, const std::string& where) {
  const auto bad = [&] {
    return fail(Errc::corrupt, fmt::format("the value of {} has no known type, or is no UTF-8", shown_name(key)),
                where);
  };
  if (type != kArray) {
    auto value = read_scalar(r, type);
    if (!value) return bad();
    return *std::move(value);
  }
  const auto element = r.number<uint32_t>();
  const auto n = r.number<uint64_t>();
  if (!r.ok()) return cut_short(where);
  if (element == kArray) {
    return fail(Errc::unsupported, fmt::format("{} is an array of arrays", shown_name(key)), where);
  }
  if (n > std::min(kMostElements, r.left())) {  // an element has a byte at least
    return fail(Errc::corrupt, fmt::format("{} has {} elements", shown_name(key), n), where);
  }
  Json array = Json::array();
  array.get_ref<Json::array_t&>().reserve(n);
  for (uint64_t i = 0; i < n && r.ok(); ++i) {
    auto value = read_scalar(r, element);
    if (!value) return bad();
    array.push_back(*std::move(value));
  }
  return array;
}

}  // namespace

std::string_view name(GgmlType type) {
  return row(type).name;
}
int64_t block_elements(GgmlType type) {
  return row(type).elements;
}
int64_t block_bytes(GgmlType type) {
  return row(type).bytes;
}

Result<GgufFile> GgufFile::open(const std::filesystem::path& path) {
  GgufFile out;
  PINION_TRY(out.file_, MappedFile::open(path));
  const auto bytes = out.file_.bytes();
  const std::string where = path.string();
  Reader r(bytes);
  if (r.number<uint32_t>() != 0x46554747 || !r.ok()) return fail(Errc::corrupt, "this is no GGUF file", where);
  const auto version = r.number<uint32_t>();
  if (version != 2 && version != 3) {
    const bool swapped = version == 0x02000000 || version == 0x03000000;
    return fail(Errc::unsupported,
                swapped ? "the file is big-endian" : fmt::format("GGUF version {} is not supported", version), where,
                "convert it with a current llama.cpp");
  }
  const auto tensors = r.number<uint64_t>(), keys = r.number<uint64_t>();
  if (!r.ok()) return cut_short(where);
  if (tensors > kMostTensors || keys > kMostKeys) {
    return fail(Errc::corrupt, fmt::format("the header claims {} tensors and {} keys", tensors, keys), where);
  }
  for (uint64_t i = 0; i < keys; ++i) {
    const std::string key = r.string();
    const auto type = r.number<uint32_t>();
    if (!r.ok()) return cut_short(where);
    if (key.empty() || key.size() > kMostKey || !is_utf8(key) || out.metadata_.contains(key)) {
      return fail(Errc::corrupt, fmt::format("the key {} is empty, repeated or no UTF-8", shown_name(key)), where);
    }
    PINION_TRY(out.metadata_[key], read_value(r, type, key, where));
    if (!r.ok()) return cut_short(where);
  }

  struct Entry {
    std::string name;
    GgufTensor tensor;
    uint64_t offset, size;
  };
  std::vector<Entry> entries;
  for (uint64_t i = 0; i < tensors; ++i) {
    Entry e{.name = r.string(), .tensor = {}, .offset = 0, .size = 0};
    const auto dims = r.number<uint32_t>();
    if (!r.ok()) return cut_short(where);
    const auto bad = [&](const std::string& what) {
      return fail(Errc::corrupt, fmt::format("the tensor {} {}", shown_name(e.name), what), where);
    };
    if (e.name.empty() || e.name.size() > kMostKey || !is_utf8(e.name)) return bad("has no sound name");
    if (dims < 1 || dims > 4) return bad(fmt::format("has {} dimensions", dims));
    uint64_t elements = 1;
    for (uint32_t d = 0; d < dims; ++d) {
      const auto n = r.number<int64_t>();
      if (n < 1 || n > (int64_t{1} << 40) || elements > (uint64_t{1} << 48) / static_cast<uint64_t>(n))
        return r.ok() ? bad("has a dimension out of range") : cut_short(where);
      elements *= static_cast<uint64_t>(n);
      e.tensor.shape.insert(e.tensor.shape.begin(), n);
    }
    const auto type = r.number<uint32_t>();
    e.offset = r.number<uint64_t>();
    if (!r.ok()) return cut_short(where);
    const TypeRow* known = find_type(type);
    if (known == nullptr) {
      std::string supported;
      for (const TypeRow& t : kTypes) supported += fmt::format("{}{}", supported.empty() ? "" : ", ", t.name);
      return fail(Errc::unsupported, fmt::format("the tensor {} has ggml's type {}", shown_name(e.name), type), where,
                  "supported: " + supported);
    }
    if (e.tensor.shape.back() % known->elements != 0) {
      return bad(fmt::format("has rows of {}, which {} does not divide into blocks of {}", e.tensor.shape.back(),
                             known->name, known->elements));
    }
    e.tensor.type = known->type;
    e.size = elements / known->elements * known->bytes;
    entries.push_back(std::move(e));
  }

  uint64_t alignment = 32;
  if (const auto it = out.metadata_.find("general.alignment"); it != out.metadata_.end()) {
    if (!it->is_number_integer() || it->get<int64_t>() < 1 || it->get<int64_t>() > (1 << 20) ||
        (it->get<int64_t>() & (it->get<int64_t>() - 1)) != 0) {
      return fail(Errc::corrupt, "general.alignment must be a power of two", where);
    }
    alignment = it->get<uint64_t>();
  }
  const uint64_t start = (r.position() + alignment - 1) / alignment * alignment;
  const uint64_t size = start > bytes.size() ? 0 : bytes.size() - start;
  for (Entry& e : entries) {
    if (e.offset % alignment != 0 || e.offset > size || e.size > size - e.offset) {
      return fail(Errc::corrupt, fmt::format("the tensor {} lies outside the file", shown_name(e.name)), where,
                  "the file was cut short: fetch it again");
    }
    e.tensor.data = bytes.subspan(start + e.offset, e.size);
    const std::string name = e.name;
    if (!out.tensors_.emplace(name, std::move(e.tensor)).second)
      return fail(Errc::corrupt, fmt::format("the tensor {} is there twice", shown_name(name)), where);
  }
  return out;
}

}  // namespace pinion
