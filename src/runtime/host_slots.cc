#include "runtime/host_slots.h"

#include "base/check.h"

namespace pinion {

HostSlots::HostSlots(int32_t count) {
  slots_.resize(count);
  for (int32_t s = 0; s < count; ++s) push_back(s);
}

void HostSlots::fill(int32_t slot, PrefixNodeId node, int32_t group) {
  check(slots_[slot].node == 0 && node != 0, "a host slot is filled twice");
  slots_[slot].node = node;
  slots_[slot].group = group;
  ++used_;
  touch(slot);
}

void HostSlots::clear(int32_t slot) {
  Slot& s = slots_[slot];
  check(s.node != 0 && s.pins == 0, "a host slot is cleared while it is unused or read");
  unlink(slot);
  s.node = 0;
  --used_;
  s.prev = -1;
  s.next = head_;
  (head_ >= 0 ? slots_[head_].prev : tail_) = slot;
  head_ = slot;
}

void HostSlots::touch(int32_t slot) {
  if (slots_[slot].pins > 0) return;  // unpin() will
  unlink(slot);
  push_back(slot);
}

void HostSlots::pin(int32_t slot) {
  if (slots_[slot].pins++ == 0) unlink(slot);
}

void HostSlots::unpin(int32_t slot) {
  check(slots_[slot].pins > 0, "a host slot is unpinned twice");
  if (--slots_[slot].pins == 0) push_back(slot);
}

void HostSlots::unlink(int32_t slot) {
  Slot& s = slots_[slot];
  (s.prev >= 0 ? slots_[s.prev].next : head_) = s.next;
  (s.next >= 0 ? slots_[s.next].prev : tail_) = s.prev;
  s.prev = s.next = -1;
}

void HostSlots::push_back(int32_t slot) {
  Slot& s = slots_[slot];
  s.prev = tail_;
  s.next = -1;
  (tail_ >= 0 ? slots_[tail_].next : head_) = slot;
  tail_ = slot;
}

std::string HostSlots::integrity() const {
  int32_t listed = 0, used = 0, pinned = 0;
  for (int32_t s = head_, prev = -1; s >= 0; prev = s, s = slots_[s].next) {
    if (slots_[s].pins != 0 || slots_[s].prev != prev || ++listed > size()) return "the list of host slots is broken";
  }
  for (const Slot& s : slots_) used += s.node != 0, pinned += s.pins > 0;
  if (listed + pinned != size()) return "a host slot is lost";
  return used == used_ ? "" : "host slots in use are miscounted";
}

}  // namespace pinion
