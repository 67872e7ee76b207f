#include "text/bpe.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <queue>

#include "text/byte_level.h"
#include "text/json_fields.h"
#include "text/unicode.h"

namespace pinion {
namespace {

constexpr size_t short_word = 40;  // symbols; up to here scanning all pairs beats a heap

}  // namespace

MergeTable::MergeTable(size_t count)
    : slots_(std::bit_ceil(std::max<size_t>(16, count * 2))), mask_(slots_.size() - 1) {}

void MergeTable::set(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = key_of(left, right);
  size_t i = slot_of(key);
  while (slots_[i].key != free_key && slots_[i].key != key) i = (i + 1) & mask_;
  slots_[i] = {key, merge};
}

Result<std::unique_ptr<TokenModel>> Bpe::parse(const Json& object, std::string_view where) {
  const Json* vocab_field = find_field(object, "vocab");
  if (!vocab_field) return wrong_field("vocab", "an object", where);
  PINION_TRY(Vocab vocab, Vocab::from_object(*vocab_field, where));
  std::unique_ptr<Bpe> bpe(new Bpe(std::move(vocab)));
  PINION_TRY(bpe->prefix_, string_field(object, "continuing_subword_prefix", where, ""));
  PINION_TRY(bpe->suffix_, string_field(object, "end_of_word_suffix", where, ""));
  PINION_TRY(bpe->fuse_unknown_, bool_field(object, "fuse_unk", where, false));
  PINION_TRY(bpe->ignore_merges_, bool_field(object, "ignore_merges", where, false));
  PINION_TRY(const bool byte_fallback, bool_field(object, "byte_fallback", where, false));
  if (byte_fallback) bpe->fallback_ = byte_fallback_ids(bpe->vocab_);
  if (find_field(object, "unk_token")) {
    PINION_TRY(const std::string unknown, string_field(object, "unk_token", where));
    bpe->unknown_ = bpe->vocab_.find(unknown);
  }
  PINION_TRY(const Json* merges, array_field(object, "merges", where));
  PINION_OK(bpe->parse_merges(*merges, where));
  bpe->all_bytes_ = bpe->prefix_.empty() && bpe->suffix_.empty();
  for (size_t byte = 0; byte < 256; ++byte) {
    std::string character;
    append_byte_level(std::string(1, static_cast<char>(byte)), character);
    bpe->byte_ids_[byte] = bpe->vocab_.find(character);
    if (bpe->byte_ids_[byte] == Vocab::none) bpe->all_bytes_ = false;
  }
  return std::unique_ptr<TokenModel>(std::move(bpe));
}

Status Bpe::parse_merges(const Json& merges, std::string_view where) {
  merges_ = MergeTable(merges.size());
  int32_t rank = 0;
  for (const Json& item : merges) {
    std::string_view left, right;
    if (item.is_string()) {
      const std::string_view line = item.get_ref<const std::string&>();
      if (line.starts_with("#version")) continue;
      const size_t space = line.find(' ');
      if (space != std::string_view::npos && line.find(' ', space + 1) == std::string_view::npos) {
        left = line.substr(0, space);
        right = line.substr(space + 1);
      }
    } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      left = item[0].get_ref<const std::string&>();
      right = item[1].get_ref<const std::string&>();
    }
    if (left.empty() || right.empty()) {
      return fail(Errc::corrupt, "merge " + std::to_string(rank) + " must be two tokens", where,
                  "take the file from the model's publisher again");
    }
    std::string merged(left);
    merged += right.starts_with(prefix_) ? right.substr(prefix_.size()) : right;
    const int32_t left_id = vocab_.find(left), right_id = vocab_.find(right), id = vocab_.find(merged);
    if (left_id == Vocab::none || right_id == Vocab::none || id == Vocab::none) {
      const std::string_view missing = left_id == Vocab::none ? left : right_id == Vocab::none ? right : merged;
      return fail(
          Errc::corrupt,
          "merge " + std::to_string(rank) + " names the token \"" + std::string(missing) + "\", which vocab lacks",
          where, "take the file from the model's publisher again");
    }
    merges_.set(left_id, right_id, {rank++, id});
  }
  return {};
}

void Bpe::tokenize(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.size() > WordCache::max_bytes) return encode(word, ids);
  const uint64_t hash = XXH3_64bits(word.data(), word.size());
  if (cache_.find(word, hash, ids)) return;
  const size_t before = ids.size();
  encode(word, ids);
  cache_.store(word, hash, ids.data() + before, ids.size() - before);
}

void Bpe::tokenize_bytes(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.size() > WordCache::max_bytes) return encode_bytes(word, ids);
  const uint64_t hash = XXH3_64bits(word.data(), word.size());
  if (cache_.find(word, hash, ids)) return;
  const size_t before = ids.size();
  encode_bytes(word, ids);
  cache_.store(word, hash, ids.data() + before, ids.size() - before);
}

void Bpe::encode_bytes(std::string_view word, std::vector<int32_t>& ids) const {
  if (!all_bytes_ || (ignore_merges_ && word.size() <= max_token_bytes)) {
    thread_local std::string mapped;
    mapped.clear();
    append_byte_level(word, mapped);
    if (!all_bytes_) return encode(mapped, ids);
    if (const int32_t id = vocab_.find(mapped); id != Vocab::none) {
      ids.push_back(id);
      return;
    }
  }
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  for (const char c : word) symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
  merge(symbols, ids);
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges_ && word.size() <= max_token_bytes) {
    if (const int32_t id = vocab_.find(word); id != Vocab::none) {
      ids.push_back(id);
      return;
    }
  }
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  first_symbols(word, symbols);
  merge(symbols, ids);
}

void Bpe::first_symbols(std::string_view word, std::vector<int32_t>& symbols) const {
  bool unknown_pending = false;
  const auto flush = [&] {
    if (unknown_pending) symbols.push_back(unknown_);
    unknown_pending = false;
  };
  std::string decorated;
  for (size_t pos = 0; pos < word.size();) {
    const size_t start = pos;
    next_char(word, pos);
    std::string_view symbol = word.substr(start, pos - start);
    if ((start > 0 && !prefix_.empty()) || (pos == word.size() && !suffix_.empty())) {
      decorated.clear();
      if (start > 0) decorated += prefix_;
      decorated += symbol;
      if (pos == word.size()) decorated += suffix_;
      symbol = decorated;
    }
    if (const int32_t id = vocab_.find(symbol); id != Vocab::none) {
      flush();
      symbols.push_back(id);
      continue;
    }
    const auto fallback = [&](char c) { return fallback_[static_cast<unsigned char>(c)]; };
    if (!fallback_.empty() &&
        std::all_of(symbol.begin(), symbol.end(), [&](char c) { return fallback(c) != Vocab::none; })) {
      // A pending unknown is not flushed first: the reference keeps it for after the bytes.
      for (const char c : symbol) symbols.push_back(fallback(c));
    } else if (unknown_ != Vocab::none) {
      if (!fuse_unknown_) flush();
      unknown_pending = true;
    }
  }
  flush();
}

void Bpe::merge(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const {
  if (symbols.size() > short_word) {
    merge_long(symbols);
  } else if (symbols.size() > 1) {
    merge_short(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
  // One long word must not keep its memory in every thread for good.
  if (symbols.capacity() > (1 << 16)) std::vector<int32_t>().swap(symbols);
}

void Bpe::merge_short(std::vector<int32_t>& symbols) const {
  std::array<MergeTable::Merge, short_word> pairs;  // pairs[i]: symbols i and i + 1
  size_t count = symbols.size();
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = merges_.find(symbols[i], symbols[i + 1]);
  while (count > 1) {
    size_t best = count;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (pairs[i].rank >= 0 && (best == count || pairs[i].rank < pairs[best].rank)) best = i;
    }
    if (best == count) break;
    symbols[best] = pairs[best].id;
    std::copy(symbols.begin() + static_cast<ptrdiff_t>(best) + 2, symbols.begin() + static_cast<ptrdiff_t>(count),
              symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    --count;
    for (size_t i = best + 1; i + 1 < count; ++i) pairs[i] = pairs[i + 1];
    if (best + 1 < count) pairs[best] = merges_.find(symbols[best], symbols[best + 1]);
    if (best > 0) pairs[best - 1] = merges_.find(symbols[best - 1], symbols[best]);
  }
  symbols.resize(count);
}

void Bpe::merge_long(std::vector<int32_t>& symbols) const {
  // A linked list of symbols, and a heap of (rank, position). An entry whose rank is no longer its position's is stale.
  struct Node {
    size_t previous, next;
    MergeTable::Merge pair;  // with the next symbol
  };
  struct Entry {
    int32_t rank;
    size_t at;
    bool operator>(const Entry& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  const size_t end = symbols.size();
  std::vector<Node> nodes(end);
  std::vector<Entry> entries;
  for (size_t i = 0; i < end; ++i) {
    nodes[i] = {i - 1, i + 1, i + 1 < end ? merges_.find(symbols[i], symbols[i + 1]) : MergeTable::Merge{}};
    if (nodes[i].pair.rank >= 0) entries.push_back({nodes[i].pair.rank, i});
  }
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> heap(std::greater<>(), std::move(entries));
  const auto look_up = [&](size_t at) {
    Node& node = nodes[at];
    node.pair = node.next < end ? merges_.find(symbols[at], symbols[node.next]) : MergeTable::Merge{};
    if (node.pair.rank >= 0) heap.push({node.pair.rank, at});
  };
  while (!heap.empty()) {
    const Entry top = heap.top();
    heap.pop();
    Node& node = nodes[top.at];
    if (node.pair.rank != top.rank) continue;
    symbols[top.at] = node.pair.id;
    const size_t gone = node.next;
    nodes[gone].pair = {};
    node.next = nodes[gone].next;
    if (node.next < end) nodes[node.next].previous = top.at;
    look_up(top.at);
    if (top.at > 0) look_up(node.previous);
  }
  size_t count = 0;
  for (size_t i = 0; i < end; i = nodes[i].next) symbols[count++] = symbols[i];
  symbols.resize(count);
}

}  // namespace pinion
