// For tests: a GGUF file put together piece by piece, sound or not.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace pinion {

class GgufBytes {
 public:
  static std::string text(std::string_view s) { return number<uint64_t>(s.size()) + std::string(s); }
  template <class T>
  static std::string number(T v) {
    std::string out(sizeof v, 0);
    std::memcpy(out.data(), &v, sizeof v);
    return out;
  }

  // value: the bytes after the type.
  GgufBytes& key(std::string_view name, uint32_t type, const std::string& value) {
    keys_ += text(name) + number(type) + value;
    ++key_count_;
    return *this;
  }
  GgufBytes& u32(std::string_view name, uint32_t v) { return key(name, 4, number(v)); }
  GgufBytes& f32(std::string_view name, float v) { return key(name, 6, number(v)); }
  GgufBytes& flag(std::string_view name, bool v) { return key(name, 7, std::string(1, v ? 1 : 0)); }
  GgufBytes& string(std::string_view name, std::string_view v) { return key(name, 8, text(v)); }
  GgufBytes& strings(std::string_view name, const std::vector<std::string>& list) {
    std::string value = number<uint32_t>(8) + number<uint64_t>(list.size());
    for (const std::string& s : list) value += text(s);
    return key(name, 9, value);
  }
  template <class T>
  GgufBytes& numbers(std::string_view name, uint32_t type, const std::vector<T>& list) {
    std::string value = number(type) + number<uint64_t>(list.size());
    for (const T v : list) value += number(v);
    return key(name, 9, value);
  }
  // dims: the fastest first, as the file has them.
  GgufBytes& tensor(std::string_view name, const std::vector<int64_t>& dims, uint32_t type, std::string_view data) {
    data_.resize((data_.size() + 31) / 32 * 32);
    tensors_ += text(name) + number<uint32_t>(static_cast<uint32_t>(dims.size()));
    for (const int64_t d : dims) tensors_ += number(d);
    tensors_ += number(type) + number<uint64_t>(data_.size());
    data_ += data;
    ++tensor_count_;
    return *this;
  }
  std::string bytes(uint32_t version = 3) const {
    std::string out = "GGUF" + number(version) + number(tensor_count_) + number(key_count_) + keys_ + tensors_;
    out.resize((out.size() + 31) / 32 * 32);
    return out + data_;
  }

 private:
  std::string keys_, tensors_, data_;
  uint64_t key_count_ = 0, tensor_count_ = 0;
};

}  // namespace pinion
