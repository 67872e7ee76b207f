// HostSlots: the places of the KV cache's host tier, each as large as a page, in one list by recency: unused ones
// first, then the least recently used. BlockPool decides what they hold. Rules: runtime/README.md, H1 and on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pinion {

using PrefixNodeId = uint64_t;  // never used twice; 0: none

// A page and a slot, and which way its content goes. `group`: whose layers, which say how much of a page is content.
struct BlockCopy {
  int32_t block = 0, slot = 0, group = 0;
  bool to_host = false;
};

class HostSlots {
 public:
  explicit HostSlots(int32_t count);

  struct Slot {
    PrefixNodeId node = 0;  // 0: unused
    int32_t group = 0;
    int32_t pins = 0;  // pinned slots are in no list and keep what they hold
    int32_t prev = -1, next = -1;
  };
  int32_t size() const { return static_cast<int32_t>(slots_.size()); }
  int32_t used() const { return used_; }
  const Slot& operator[](int32_t slot) const { return slots_[slot]; }

  int32_t oldest() const { return head_; }  // the next to be filled, in use or not; -1: all are pinned
  void fill(int32_t slot, PrefixNodeId node, int32_t group);  // and makes it the most recently used
  void clear(int32_t slot);
  void touch(int32_t slot);
  void pin(int32_t slot);
  void unpin(int32_t slot);  // the last time makes it the most recently used

  std::string integrity() const;  // empty, or what is wrong with the list

 private:
  void unlink(int32_t slot);
  void push_back(int32_t slot);

  std::vector<Slot> slots_;
  int32_t head_ = -1, tail_ = -1, used_ = 0;
};

}  // namespace pinion
