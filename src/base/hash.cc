#include "base/hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include "base/check.h"

namespace pinion {

std::string Hash128::hex() const {
  return fmt::format("{:016x}{:016x}", high, low);
}

Hash128 hash128(std::span<const std::byte> bytes, uint64_t seed) {
  const XXH128_hash_t h = XXH3_128bits_withSeed(bytes.data(), bytes.size(), seed);
  return {h.high64, h.low64};
}

struct Hasher128::State {
  XXH3_state_t* hash = XXH3_createState();  // of an alignment that new does not promise
};

void Hasher128::Free::operator()(State* state) const {
  XXH3_freeState(state->hash);
  delete state;
}

Hasher128::Hasher128() : state_(new State) {
  check(state_->hash != nullptr, "no memory for a hash");
  reset();
}

void Hasher128::reset() {
  XXH3_128bits_reset(state_->hash);
}

void Hasher128::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_->hash, bytes.data(), bytes.size());
}

Hash128 Hasher128::digest() const {
  const XXH128_hash_t h = XXH3_128bits_digest(state_->hash);
  return {h.high64, h.low64};
}

}  // namespace pinion
