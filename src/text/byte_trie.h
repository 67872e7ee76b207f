// A trie over bytes in one open-addressing table: (node, byte) -> node. Finds every entry that begins at a position by
// walking once; used for added tokens, Unigram and WordPiece.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace pinion {

class ByteTrie {
 public:
  static constexpr int32_t root = 0, none = -1;

  ByteTrie() : values_{none}, slots_(64) {}

  void insert(std::string_view key, int32_t value) {
    int32_t node = root;
    for (const char c : key) node = child_or_new(node, static_cast<unsigned char>(c));
    values_[static_cast<size_t>(node)] = value;
  }
  int32_t child(int32_t node, char c) const {
    const uint64_t key = key_of(node, static_cast<unsigned char>(c));
    for (size_t i = slot_of(key);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].key == key) return slots_[i].node;
      if (slots_[i].key == 0) return none;
    }
  }
  int32_t value(int32_t node) const { return values_[static_cast<size_t>(node)]; }

 private:
  struct Slot {
    uint64_t key = 0;  // 0: free
    int32_t node = none;
  };
  static uint64_t key_of(int32_t node, unsigned char byte) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(node)) << 8 | byte) + 1;
  }
  size_t slot_of(uint64_t key) const { return (key * 0x9E3779B97F4A7C15ull >> 20) & (slots_.size() - 1); }

  int32_t child_or_new(int32_t node, unsigned char byte) {
    if (const int32_t found = child(node, static_cast<char>(byte)); found != none) return found;
    if (values_.size() * 2 > slots_.size()) grow();
    const auto fresh = static_cast<int32_t>(values_.size());
    values_.push_back(none);
    place({key_of(node, byte), fresh});
    return fresh;
  }
  void place(Slot slot) {
    size_t i = slot_of(slot.key);
    while (slots_[i].key != 0) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = slot;
  }
  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != 0) place(slot);
    }
  }

  std::vector<int32_t> values_;  // by node
  std::vector<Slot> slots_;
};

}  // namespace pinion
