// 128-bit content hashes (XXH3): checksums of engine sections, cache keys, KV block chains. Not cryptographic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace pinion {

struct Hash128 {
  uint64_t high = 0, low = 0;
  bool operator==(const Hash128&) const = default;
  std::string hex() const;  // 32 lower-case digits
};

Hash128 hash128(std::span<const std::byte> bytes, uint64_t seed = 0);
inline Hash128 hash128(std::string_view text, uint64_t seed = 0) {
  return hash128(std::as_bytes(std::span(text.data(), text.size())), seed);
}

// The same of bytes that come in pieces: digest() is hash128 of all since the last reset().
class Hasher128 {
 public:
  Hasher128();
  void reset();
  void update(std::span<const std::byte> bytes);
  Hash128 digest() const;

 private:
  struct State;
  struct Free {
    void operator()(State* state) const;
  };
  std::unique_ptr<State, Free> state_;
};

}  // namespace pinion
