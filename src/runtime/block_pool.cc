#include "runtime/block_pool.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace pinion {

namespace {

int32_t ceil_div(int32_t a, int32_t b) {
  return (a + b - 1) / b;
}

}  // namespace

std::string PrefixRoot::key() const {
  // Lengths first, so that no salt can pass for another salt and adapter.
  return std::to_string(rope_variant) + ':' + std::to_string(cache_salt.size()) + ':' + cache_salt + adapter;
}

BlockPool::BlockPool(BlockPoolOptions options) : options_(std::move(options)), slots_(options_.host_slots) {
  check(options_.num_blocks > 0 && options_.block_size > 0 && !options_.windows.empty(), "block pool without pages");
  if (options_.hash_bits < 64) hash_mask_ = (uint64_t{1} << options_.hash_bits) - 1;
  blocks_.resize(options_.num_blocks);
  // Pushed at the head: in reverse, so that pages are first used in order and untouched ones stay unmapped.
  for (int32_t b = options_.num_blocks - 1; b >= 0; --b) push_free(b);
}

// ---- the tree of cached prefixes
// -------------------------------------------------------------------------------------

uint64_t BlockPool::root_hash(const std::string& key) const {
  return hash128(key).low & hash_mask_;
}

uint64_t BlockPool::child_hash(uint64_t parent, std::span<const int32_t> tokens) const {
  return hash128(std::as_bytes(tokens), parent + 1).low & hash_mask_;
}

PrefixNodeId BlockPool::find_root(const std::string& key) const {
  const auto it = by_hash_.find(root_hash(key));
  if (it == by_hash_.end()) return 0;
  const Node& node = nodes_.at(it->second);
  return node.parent == 0 && node.root_key == key ? it->second : 0;
}

PrefixNodeId BlockPool::find_child(PrefixNodeId parent, std::span<const int32_t> tokens) const {
  const auto it = by_hash_.find(child_hash(nodes_.at(parent).hash, tokens));
  if (it == by_hash_.end()) return 0;
  const Node& node = nodes_.at(it->second);
  return node.parent == parent && std::ranges::equal(node.tokens, tokens) ? it->second : 0;
}

PrefixNodeId BlockPool::add_node(Node node) {
  const auto [it, added] = by_hash_.try_emplace(node.hash, next_node_);
  if (!added) return 0;
  if (node.parent) ++nodes_.at(node.parent).refs;
  node.blocks.assign(groups(), -1);
  if (slots_.size() > 0) node.slots.assign(groups(), -1);
  nodes_.emplace(next_node_, std::move(node));
  return next_node_++;
}

void BlockPool::unref_node(PrefixNodeId id) {
  while (id) {  // up the chain: a node lives as long as something needs it to be found
    const auto it = nodes_.find(id);
    check(it != nodes_.end() && it->second.refs > 0, "prefix node released twice");
    if (--it->second.refs > 0) return;
    const PrefixNodeId parent = it->second.parent;
    by_hash_.erase(it->second.hash);
    nodes_.erase(it);
    id = parent;
  }
}

std::vector<PrefixNodeId> BlockPool::walk(const PrefixRoot& root, std::span<const int32_t> tokens,
                                          int32_t limit) const {
  std::vector<PrefixNodeId> path;
  if (!options_.prefix_reuse) return path;
  PrefixNodeId node = find_root(root.key());
  const int32_t size = options_.block_size;
  for (int32_t end = size; node && end <= limit; end += size) {
    node = find_child(node, tokens.subspan(end - size, size));
    if (node) path.push_back(node);
  }
  return path;
}

// ---- hits
// ------------------------------------------------------------------------------------------------------------

int32_t BlockPool::first_live(int32_t group, int32_t past) const {
  const int32_t window = options_.windows[group];
  return window == 0 ? 0 : std::max(0, past - window + 1) / options_.block_size;
}

int32_t BlockPool::match(const PrefixRoot& root, std::span<const int32_t> tokens, int32_t limit) const {
  const auto path = walk(root, tokens, std::min<int32_t>(limit, static_cast<int32_t>(tokens.size())));
  // For each group the run of cached blocks that ends at each length; the longest length where every run reaches back
  // to the group's first visible block wins.
  std::vector<int32_t> run(groups(), 0);
  int32_t best = 0;
  for (size_t i = 0; i < path.size(); ++i) {
    const Node& node = nodes_.at(path[i]);
    const int32_t length = static_cast<int32_t>(i) + 1;
    bool all = true;
    for (int32_t g = 0; g < groups(); ++g) {
      run[g] = node.blocks[g] >= 0 || on_host(node, g) ? run[g] + 1 : 0;
      all &= run[g] >= length - first_live(g, length * options_.block_size);
    }
    if (all) best = length;
  }
  return best * options_.block_size;
}

HitBlocks BlockPool::hit_blocks(const PrefixRoot& root, std::span<const int32_t> tokens, int32_t hit) const {
  const auto path = walk(root, tokens, hit);
  HitBlocks result;
  for (int32_t g = 0; g < groups(); ++g) {
    for (size_t i = first_live(g, hit); i < path.size(); ++i) {
      const int32_t block = nodes_.at(path[i]).blocks[g];
      if (block >= 0)
        result.shared.push_back(block);
      else
        ++result.fetched;
    }
  }
  return result;
}

void BlockPool::attach(KvTable& table, const PrefixRoot& root, std::span<const int32_t> tokens, int32_t hit) {
  check(table.blocks.empty() && !table.chained, "attach to a table in use");
  table.blocks.assign(groups(), {});
  table.registered = 0;
  if (!options_.prefix_reuse) return;
  const auto path = walk(root, tokens, hit);
  check(static_cast<int32_t>(path.size()) * options_.block_size == hit, "attach beyond the hit");
  for (int32_t g = 0; g < groups(); ++g) {
    table.blocks[g].assign(path.size(), -1);
    for (size_t i = first_live(g, hit); i < path.size(); ++i) {
      const Node& node = nodes_.at(path[i]);
      const int32_t block = node.blocks[g];
      if (block < 0) {
        check(on_host(node, g), "hit without a block");
        slots_.pin(node.slots[g]);
        fetches_.push_back({&table, g, i, path[i], node.slots[g]});
        continue;
      }
      share(block);
      table.blocks[g][i] = block;
    }
  }
  if (path.empty()) {
    const std::string key = root.key();
    table.tip = find_root(key);
    if (!table.tip) table.tip = add_node({.root_key = key, .hash = root_hash(key)});
  } else {
    table.tip = path.back();
  }
  table.chained = table.tip != 0;
  if (table.chained) ++nodes_.at(table.tip).refs;
  table.registered = static_cast<int32_t>(path.size());
}

// ---- counting
// --------------------------------------------------------------------------------------------------------

int32_t BlockPool::needed(const KvTable& table, int32_t end) const {
  int32_t pages = 0;
  for (const auto& group : table.blocks)
    pages += std::max(0, ceil_div(end, options_.block_size) - static_cast<int32_t>(group.size()));
  return pages;
}

int32_t BlockPool::needed_after_hit(int32_t past, int32_t end) const {
  return groups() * (ceil_div(end, options_.block_size) - past / options_.block_size);
}

int32_t BlockPool::peak_of(int32_t group, int32_t end) const {
  const int32_t window = options_.windows[group];
  const int32_t all = ceil_div(end, options_.block_size);
  // A window of w tokens at the worst alignment touches this many blocks.
  return window == 0 ? all : std::min(all, ceil_div(window - 1, options_.block_size) + 1);
}

int32_t BlockPool::peak(int32_t end) const {
  int32_t pages = 0;
  for (int32_t g = 0; g < groups(); ++g) pages += peak_of(g, end);
  return pages;
}

int32_t BlockPool::still_needed(const KvTable& table, int32_t end) const {
  int32_t pages = 0;
  for (int32_t g = 0; g < groups(); ++g) {
    const auto held = std::ranges::count_if(table.blocks[g], [](int32_t b) { return b >= 0; });
    pages += std::max(0, peak_of(g, end) - static_cast<int32_t>(held));
  }
  return pages;
}

int32_t BlockPool::still_needed_after_hit(int32_t hit, int32_t end) const {
  int32_t pages = 0;
  for (int32_t g = 0; g < groups(); ++g)
    pages += std::max(0, peak_of(g, end) - (hit / options_.block_size - first_live(g, hit)));
  return pages;
}

// ---- tables
// ----------------------------------------------------------------------------------------------------------

void BlockPool::grow(KvTable& table, int32_t end) {
  check(table.blocks.size() == options_.windows.size(), "grow before attach");
  const auto want = static_cast<size_t>(ceil_div(end, options_.block_size));
  for (int32_t g = 0; g < groups(); ++g) {
    while (table.blocks[g].size() < want) {
      const int32_t block = take();
      blocks_[block].group = g;
      table.blocks[g].push_back(block);
    }
  }
}

void BlockPool::written(KvTable& table, std::span<const int32_t> tokens, int32_t computed) {
  const int32_t size = options_.block_size;
  const int32_t whole = computed / size;
  for (; table.registered < whole && table.chained; ++table.registered) {
    const auto content = tokens.subspan(static_cast<size_t>(table.registered) * size, size);
    PrefixNodeId id = find_child(table.tip, content);
    if (!id) {
      const uint64_t hash = child_hash(nodes_.at(table.tip).hash, content);
      id = add_node({.parent = table.tip, .tokens = {content.begin(), content.end()}, .hash = hash});
    }
    if (!id) {  // another prefix has this hash: this sequence's later blocks stay private
      unref_node(std::exchange(table.tip, 0));
      table.chained = false;
      break;
    }
    Node& node = nodes_.at(id);
    for (int32_t g = 0; g < groups(); ++g) {
      const int32_t block = table.blocks[g][table.registered];
      if (block < 0 || node.blocks[g] >= 0 || blocks_[block].node) continue;  // an equal one is cached already
      cache(block, id);
    }
    ++node.refs;
    unref_node(std::exchange(table.tip, id));
  }
  for (int32_t g = 0; g < groups(); ++g) {
    auto& group = table.blocks[g];
    // From the first visible block back to the first one already freed: each block is visited once.
    for (int32_t b = std::min(first_live(g, computed), static_cast<int32_t>(group.size())) - 1; b >= 0; --b) {
      if (group[b] < 0) break;
      drop(std::exchange(group[b], -1));
    }
  }
}

void BlockPool::release(KvTable& table) {
  // Last blocks first: the end of a prefix is evicted before its beginning, without which it is of no use.
  size_t longest = 0;
  for (const auto& group : table.blocks) longest = std::max(longest, group.size());
  for (size_t i = longest; i-- > 0;)
    for (auto& group : table.blocks)
      if (i < group.size() && group[i] >= 0) drop(group[i]);
  if (table.tip) unref_node(table.tip);
  table = {};
}

void BlockPool::forget(KvTable& table) {
  for (const auto& group : table.blocks) {
    for (const int32_t block : group) {
      if (block < 0 || !blocks_[block].node) continue;
      const Node& node = nodes_.at(blocks_[block].node);
      if (on_host(node, blocks_[block].group)) clear_slot(node.slots[blocks_[block].group]);
      uncache(block);
    }
  }
  release(table);
}

// ---- pages
// -----------------------------------------------------------------------------------------------------------

int32_t BlockPool::take() {
  check(free_head_ >= 0, "the block pool is empty: the plan counted wrong");
  const int32_t block = free_head_;
  unlink(block);
  if (blocks_[block].node) {
    keep_on_host(block, moves_.copies);
    // Even if it was there already: the copy may still be under way, and the page is about to be written.
    moves_.awaited |= slots_.size() > 0;
    uncache(block);
  }
  blocks_[block].refs = 1;
  return block;
}

void BlockPool::share(int32_t block) {
  if (blocks_[block].refs == 0)
    unlink(block);
  else if (options_.windows[blocks_[block].group])
    ++windowed_sharing_;
  ++blocks_[block].refs;
}

void BlockPool::drop(int32_t block) {
  Block& b = blocks_[block];
  check(b.refs > 0, "block released twice");
  if (--b.refs == 0)
    push_free(block);
  else if (options_.windows[b.group])
    --windowed_sharing_;
}

void BlockPool::push_free(int32_t block) {
  Block& b = blocks_[block];
  if (b.node) {
    b.prev = free_tail_;
    b.next = -1;
    (free_tail_ >= 0 ? blocks_[free_tail_].next : free_head_) = block;
    free_tail_ = block;
  } else {
    b.group = -1;
    b.prev = -1;
    b.next = free_head_;
    (free_head_ >= 0 ? blocks_[free_head_].prev : free_tail_) = block;
    free_head_ = block;
  }
  ++free_count_;
}

void BlockPool::unlink(int32_t block) {
  Block& b = blocks_[block];
  (b.prev >= 0 ? blocks_[b.prev].next : free_head_) = b.next;
  (b.next >= 0 ? blocks_[b.next].prev : free_tail_) = b.prev;
  b.prev = b.next = -1;
  --free_count_;
}

void BlockPool::cache(int32_t block, PrefixNodeId id) {
  Node& node = nodes_.at(id);
  node.blocks[blocks_[block].group] = block;
  blocks_[block].node = id;
  ++node.refs;
  ++cached_count_;
}

void BlockPool::uncache(int32_t block) {
  const PrefixNodeId id = std::exchange(blocks_[block].node, 0);
  nodes_.at(id).blocks[blocks_[block].group] = -1;
  --cached_count_;
  unref_node(id);
}

std::string BlockPool::integrity(std::span<const KvTable* const> live) const {
  std::vector<int32_t> refs(blocks_.size(), 0);
  std::unordered_map<PrefixNodeId, int32_t> node_refs;
  const auto at = [](int32_t block) { return "block " + std::to_string(block); };
  for (const KvTable* table : live) {
    if (table->tip) ++node_refs[table->tip];
    for (size_t g = 0; g < table->blocks.size(); ++g) {
      for (const int32_t block : table->blocks[g]) {
        if (block < 0) continue;
        if (block >= options_.num_blocks) return at(block) + " of a table is outside the pool";
        if (blocks_[block].group != static_cast<int32_t>(g)) return at(block) + " is in another group's table";
        ++refs[block];
      }
    }
  }
  int32_t unused = 0, cached = 0, sharing = 0;
  for (int32_t b = 0; b < options_.num_blocks; ++b) {
    if (refs[b] != blocks_[b].refs)
      return at(b) + " has " + std::to_string(blocks_[b].refs) + " references, tables hold " + std::to_string(refs[b]);
    unused += refs[b] == 0;
    if (refs[b] > 1 && options_.windows[blocks_[b].group]) sharing += refs[b] - 1;
    if (!blocks_[b].node) continue;
    ++cached;
    ++node_refs[blocks_[b].node];
    const auto node = nodes_.find(blocks_[b].node);
    if (node == nodes_.end() || node->second.blocks[blocks_[b].group] != b) return at(b) + " is cached under no node";
  }
  if (!fetches_.empty()) return "hits on the host were not fetched";
  if (std::string wrong = slots_.integrity(); !wrong.empty()) return wrong;
  for (int32_t s = 0; s < slots_.size(); ++s) {
    if (slots_[s].pins != 0) return "a host slot is pinned, and no hit is being fetched";
    if (slots_[s].node == 0) continue;
    ++node_refs[slots_[s].node];
    const auto node = nodes_.find(slots_[s].node);
    if (node == nodes_.end() || node->second.slots[slots_[s].group] != s)
      return "host slot " + std::to_string(s) + " is under no node";
  }
  int32_t listed = 0;
  for (int32_t b = free_head_, prev = -1; b >= 0; prev = b, b = blocks_[b].next) {
    if (blocks_[b].refs || blocks_[b].prev != prev || ++listed > options_.num_blocks)
      return at(b) + ": free list broken";
  }
  if (listed != unused || free_count_ != unused)
    return std::to_string(unused) + " pages are unused, the free list has " + std::to_string(listed) + ", counted " +
           std::to_string(free_count_);
  if (cached != cached_count_) return "cached blocks miscounted";
  if (sharing != windowed_sharing_) return "shared windowed pages miscounted";
  for (const auto& [id, node] : nodes_) {
    if (node.parent) ++node_refs[node.parent];
    for (const int32_t s : node.slots)
      if (s >= 0 && slots_[s].node != id) return "a prefix node's host slot is another's";
    if (const auto it = by_hash_.find(node.hash); it == by_hash_.end() || it->second != id)
      return "a prefix node cannot be found by its hash";
  }
  for (const auto& [id, node] : nodes_)
    if (node_refs[id] != node.refs || node.refs == 0) return "a prefix node's references are miscounted";
  return by_hash_.size() == nodes_.size() ? "" : "the hash index has dangling entries";
}

}  // namespace pinion
