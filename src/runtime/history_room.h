// Who has which part of the device's memory for histories (SamplingMemory::histories): each sequence with penalties has
// one from its first step until it is gone. First fit; ranges that meet become one.
#pragma once

#include <cstdint>
#include <iterator>
#include <map>
#include <utility>

namespace pinion {

class HistoryRoom {
 public:
  explicit HistoryRoom(int32_t entries) {
    if (entries > 0) free_.emplace(0, entries);
  }

  // Gives its part back when it is destroyed; the room outlives it.
  class Range {
   public:
    Range() = default;
    Range(Range&& other) noexcept { *this = std::move(other); }
    Range& operator=(Range&& other) noexcept {
      std::swap(room_, other.room_), std::swap(begin_, other.begin_), std::swap(size_, other.size_);
      return *this;
    }
    ~Range() {
      if (room_ != nullptr) room_->give_back(begin_, size_);
    }
    int32_t begin() const { return begin_; }
    int32_t size() const { return size_; }  // 0: none

   private:
    friend class HistoryRoom;
    Range(HistoryRoom* room, int32_t begin, int32_t size) : room_(room), begin_(begin), size_(size) {}
    HistoryRoom* room_ = nullptr;
    int32_t begin_ = 0, size_ = 0;
  };

  // `entries`: at least 1. Where there is no room: a range of size 0.
  Range take(int32_t entries) {
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      const auto [begin, size] = *it;
      if (size < entries) continue;
      free_.erase(it);
      if (size > entries) free_.emplace(begin + entries, size - entries);
      return {this, begin, entries};
    }
    return {};
  }

 private:
  void give_back(int32_t begin, int32_t size) {
    auto next = free_.lower_bound(begin);
    if (next != free_.end() && next->first == begin + size) size += next->second, next = free_.erase(next);
    if (next != free_.begin()) {
      if (const auto before = std::prev(next); before->first + before->second == begin) {
        before->second += size;
        return;
      }
    }
    free_.emplace(begin, size);
  }

  std::map<int32_t, int32_t> free_;  // begin → size
};

}  // namespace pinion
