// Byte-pair encoding: a word begins as characters (or bytes), and the adjacent pair with the lowest merge rank, the
// leftmost among equals, is merged until none is left. O(n log n) in the word's length.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "text/token_model.h"
#include "text/word_cache.h"

namespace pinion {

// (left id, right id) -> (rank, merged id) in one open-addressing table.
class MergeTable {
 public:
  struct Merge {
    int32_t rank = -1, id = -1;  // rank -1: the pair does not merge
  };
  explicit MergeTable(size_t count = 0);
  void set(int32_t left, int32_t right, Merge merge);  // a pair's last merge counts
  Merge find(int32_t left, int32_t right) const {
    const uint64_t key = key_of(left, right);
    for (size_t i = slot_of(key);; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return slots_[i].merge;
      if (slots_[i].key == free_key) return {};
    }
  }

 private:
  static constexpr uint64_t free_key = ~uint64_t{0};
  struct Slot {
    uint64_t key = free_key;
    Merge merge;
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const { return ((key ^ key >> 29) * 0x9E3779B97F4A7C15ull >> 24) & mask_; }
  std::vector<Slot> slots_;
  size_t mask_;
};

class Bpe final : public TokenModel {
 public:
  static Result<std::unique_ptr<TokenModel>> parse(const Json& object, std::string_view where);
  void tokenize(std::string_view word, std::vector<int32_t>& ids) const override;
  void tokenize_bytes(std::string_view word, std::vector<int32_t>& ids) const override;

 private:
  explicit Bpe(Vocab vocab) : TokenModel(std::move(vocab)) {}
  Status parse_merges(const Json& merges, std::string_view where);
  void encode(std::string_view word, std::vector<int32_t>& ids) const;        // without the cache
  void encode_bytes(std::string_view word, std::vector<int32_t>& ids) const;  // without the cache
  void first_symbols(std::string_view word, std::vector<int32_t>& symbols) const;
  void merge(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;

  MergeTable merges_;
  std::vector<int32_t> fallback_;      // by byte; empty without byte_fallback
  std::array<int32_t, 256> byte_ids_;  // by byte, of its character in the byte-level alphabet
  bool all_bytes_ = false;             // every byte has an id, so tokenize_bytes needs no characters
  std::string prefix_, suffix_;        // of symbols after the first, of the last
  int32_t unknown_ = Vocab::none;
  bool fuse_unknown_ = false, ignore_merges_ = false;
  WordCache cache_;  // one alphabet per tokenizer: only one of the two tokenize calls is used
};

}  // namespace pinion
