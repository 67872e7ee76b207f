// A bounded cache of word -> token ids, shared by all threads. Direct-mapped: a slot holds the last short word that
// hashed to it, inline; locks are striped, so threads seldom meet.
#pragma once

#include <cstdint>
#include <cstring>
#include <mutex>
#include <string_view>
#include <vector>

namespace pinion {

class WordCache {
 public:
  static constexpr size_t max_bytes = 30, max_ids = 8;

  WordCache() : slots_(slot_count), locks_(lock_count) {}

  bool find(std::string_view word, uint64_t hash, std::vector<int32_t>& ids) const {
    const size_t i = hash % slot_count;
    const std::lock_guard lock(locks_[i % lock_count]);
    const Slot& slot = slots_[i];
    if (slot.bytes != word.size() || std::memcmp(slot.word, word.data(), word.size()) != 0) return false;
    ids.insert(ids.end(), slot.ids, slot.ids + slot.count);
    return true;
  }
  void store(std::string_view word, uint64_t hash, const int32_t* ids, size_t count) const {
    if (count > max_ids) return;
    const size_t i = hash % slot_count;
    const std::lock_guard lock(locks_[i % lock_count]);
    Slot& slot = slots_[i];
    slot.bytes = static_cast<uint8_t>(word.size());
    slot.count = static_cast<uint8_t>(count);
    std::memcpy(slot.word, word.data(), word.size());
    std::memcpy(slot.ids, ids, count * sizeof(int32_t));
  }

 private:
  static constexpr size_t slot_count = 1 << 15, lock_count = 256;
  struct Slot {
    uint8_t bytes = 0, count = 0;  // words are never empty: 0 bytes is a free slot
    char word[max_bytes];
    int32_t ids[max_ids];
  };
  mutable std::vector<Slot> slots_;
  mutable std::vector<std::mutex> locks_;
};

}  // namespace pinion
