// BlockPool: one pool of equal KV pages for all groups of layers that cache alike, with reuse of whole blocks by
// prefix. Cached prefixes form a tree: a node is (parent node, one block's tokens), found by a chained hash and
// confirmed by comparing both, so a hash collision can only cost a hit, never give a wrong one. With a host tier, what
// is evicted is copied to host memory and comes back with a hit; the pool says which copies, an Executor makes them.
// Rules: runtime/README.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/hash.h"
#include "runtime/host_slots.h"

namespace pinion {

struct BlockPoolOptions {
  int32_t num_blocks = 0;        // pages, shared by the groups
  int32_t block_size = 64;       // tokens in a block
  std::vector<int32_t> windows;  // per KvGroup; 0: full attention. A token sees itself and window - 1 before it.
  bool prefix_reuse = true;
  int32_t host_slots = 0;  // pages of the host tier; 0: none
  int hash_bits = 64;      // tests truncate the hash to force collisions
};

// One sequence's blocks. Owned by the sequence, changed only by the pool.
struct KvTable {
  std::vector<std::vector<int32_t>> blocks;  // [group][logical block]; -1 behind the window
  PrefixNodeId tip = 0;                      // node of the last registered block (or the root); holds a reference
  int32_t registered = 0;                    // blocks that have gone through register
  bool chained = false;                      // whether later blocks can still be registered
};

// What makes two equal token prefixes have different KV content.
struct PrefixRoot {
  std::string cache_salt;
  uint64_t rope_variant = 0;
  std::string adapter;
  bool operator==(const PrefixRoot&) const = default;
  std::string key() const;  // unambiguous
};

// What a sequence takes by attach() at a hit.
struct HitBlocks {
  std::vector<int32_t> shared;  // pages that hold its blocks
  int32_t fetched = 0;          // pages to take for blocks that only the host has
};

// Copies to make, in this order. `awaited`: the next step begins when they, and all before them, have ended.
struct BlockMoves {
  std::vector<BlockCopy> copies;
  bool awaited = false;
};

class BlockPool {
 public:
  explicit BlockPool(BlockPoolOptions options);

  const BlockPoolOptions& options() const { return options_; }
  int32_t groups() const { return static_cast<int32_t>(options_.windows.size()); }
  int32_t free_blocks() const { return free_count_; }  // cached ones included: they are evicted when needed
  int32_t used_blocks() const { return options_.num_blocks - free_count_; }
  int32_t cached_blocks() const { return cached_count_; }  // that hold a reusable prefix, in use or not
  int32_t ref_count(int32_t block) const { return blocks_[block].refs; }
  bool windowed(int32_t block) const { return options_.windows[blocks_[block].group] > 0; }  // of a table or cached
  // Pages of windowed groups that are shared, counted once per sharer beyond the first: sharers part ways as their
  // windows move on, each then needing a page of its own.
  int32_t windowed_sharing() const { return windowed_sharing_; }
  int32_t host_blocks() const { return slots_.used(); }  // prefix blocks on the host, whether also in a page or not
  uint64_t host_hits() const { return host_hits_; }      // blocks of hits that came from there

  // The longest reusable prefix of `tokens`, in tokens (a multiple of the block size, at most `limit`): every block of
  // full groups and the blocks inside the window of windowed groups are cached, in a page or on the host.
  int32_t match(const PrefixRoot& root, std::span<const int32_t> tokens, int32_t limit) const;
  HitBlocks hit_blocks(const PrefixRoot& root, std::span<const int32_t> tokens, int32_t hit) const;
  // Starts an empty table: shares the blocks of a hit as returned by match(). fetch(), after all attach() of a step and
  // before anything else, takes pages for those on the host; the caller has made sure that they are free.
  void attach(KvTable& table, const PrefixRoot& root, std::span<const int32_t> tokens, int32_t hit);
  void fetch();
  // The copies that attach(), fetch() and grow() have asked for since the last call.
  BlockMoves moves();
  // Copies to the host of cached blocks among the next `pages` pages that would be taken: made while a step runs, they
  // leave nothing to copy when the pages are.
  std::vector<BlockCopy> copies_ahead(int32_t pages);
  void forget_host();  // nothing on the host is reused again

  // Pages that grow(table, past, end) would take, and the same for an empty table that starts at a hit of `past`.
  int32_t needed(const KvTable& table, int32_t end) const;
  int32_t needed_after_hit(int32_t past, int32_t end) const;
  // The most pages that a sequence of `end` tokens holds when it grows one token at a time.
  int32_t peak(int32_t end) const;
  // Pages still to come until the table has seen its peak at `end` tokens; 0 when it holds that many.
  int32_t still_needed(const KvTable& table, int32_t end) const;
  int32_t still_needed_after_hit(int32_t hit, int32_t end) const;

  // Makes the table cover tokens [0, end) (windowed groups: from the window on). The caller has made sure that
  // needed() pages are free.
  void grow(KvTable& table, int32_t end);
  // `tokens` (of which `computed` are written now): registers whole blocks for reuse, frees blocks behind windows.
  void written(KvTable& table, std::span<const int32_t> tokens, int32_t computed);
  void release(KvTable& table);  // gives everything back; cached blocks stay reusable until evicted
  void forget(KvTable& table);   // release, and nothing that the table holds is reused again (its content is suspect)

  // Recounts everything against the tables of all live sequences: empty, or what is wrong.
  std::string integrity(std::span<const KvTable* const> live) const;

 private:
  struct Block {
    int32_t refs = 0;
    int32_t prev = -1, next = -1;  // in the free list, when refs is 0
    int32_t group = -1;            // while it is in a table or cached
    PrefixNodeId node = 0;         // cached as this node's block
  };
  struct Node {
    PrefixNodeId parent = 0;      // 0: a root
    std::string root_key;         // roots only
    std::vector<int32_t> tokens;  // one block
    uint64_t hash = 0;
    int32_t refs = 0;             // child nodes, cached blocks, host slots, tables whose tip it is
    std::vector<int32_t> blocks;  // per group; -1: none
    std::vector<int32_t> slots;   // likewise, of the host tier; empty without one
  };
  struct Fetch {
    KvTable* table = nullptr;
    int32_t group = 0;
    size_t index = 0;  // in the table
    PrefixNodeId node = 0;
    int32_t slot = 0;  // pinned
  };

  uint64_t root_hash(const std::string& key) const;
  uint64_t child_hash(uint64_t parent, std::span<const int32_t> tokens) const;
  PrefixNodeId find_root(const std::string& key) const;
  PrefixNodeId find_child(PrefixNodeId parent, std::span<const int32_t> tokens) const;
  PrefixNodeId add_node(Node node);  // 0 when another node has its hash
  void unref_node(PrefixNodeId id);
  std::vector<PrefixNodeId> walk(const PrefixRoot& root, std::span<const int32_t> tokens, int32_t limit) const;
  int32_t peak_of(int32_t group, int32_t end) const;
  int32_t first_live(int32_t group, int32_t past) const;  // the first block that a query at `past` can see

  int32_t take();
  void share(int32_t block);
  void drop(int32_t block);
  void push_free(int32_t block);
  void unlink(int32_t block);
  void cache(int32_t block, PrefixNodeId node);
  void uncache(int32_t block);
  bool on_host(const Node& node, int32_t group) const { return !node.slots.empty() && node.slots[group] >= 0; }
  void keep_on_host(int32_t block, std::vector<BlockCopy>& copies);
  void clear_slot(int32_t slot);

  BlockPoolOptions options_;
  std::vector<Block> blocks_;
  int32_t free_head_ = -1, free_tail_ = -1;  // taken at the head; plain blocks enter there, cached ones at the tail
  int32_t free_count_ = 0, cached_count_ = 0, windowed_sharing_ = 0;
  uint64_t hash_mask_ = ~uint64_t{0};
  PrefixNodeId next_node_ = 1;
  std::unordered_map<PrefixNodeId, Node> nodes_;
  std::unordered_map<uint64_t, PrefixNodeId> by_hash_;
  HostSlots slots_;
  std::vector<Fetch> fetches_;  // between attach() and fetch()
  BlockMoves moves_;
  uint64_t host_hits_ = 0;
};

}  // namespace pinion
