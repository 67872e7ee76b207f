// The pool's host tier: what is copied out, what comes back, and the slots that hold it.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "runtime/block_pool.h"

namespace pinion {

void BlockPool::fetch() {
  // Backwards: the beginning of a prefix, without which its end is of no use, becomes the most recently used.
  for (auto f = fetches_.rbegin(); f != fetches_.rend(); ++f) {
    int32_t block = nodes_.at(f->node).blocks[f->group];
    if (block >= 0) {  // another sequence of the step has fetched it
      share(block);
    } else {
      block = take();
      blocks_[block].group = f->group;
      cache(block, f->node);
      moves_.copies.push_back({.block = block, .slot = f->slot, .group = f->group, .to_host = false});
      moves_.awaited = true;
    }
    f->table->blocks[f->group][f->index] = block;
    slots_.unpin(f->slot);
    ++host_hits_;
  }
  fetches_.clear();
}

BlockMoves BlockPool::moves() {
  return std::exchange(moves_, {});
}

std::vector<BlockCopy> BlockPool::copies_ahead(int32_t pages) {
  std::vector<BlockCopy> copies;
  // Not more than a part of the slots: these blocks must not push each other out.
  int32_t left = std::min(pages, slots_.size() / 4);
  for (int32_t b = free_head_; b >= 0 && left > 0; b = blocks_[b].next, --left)
    if (blocks_[b].node && !on_host(nodes_.at(blocks_[b].node), blocks_[b].group)) keep_on_host(b, copies);
  return copies;
}

void BlockPool::keep_on_host(int32_t block, std::vector<BlockCopy>& copies) {
  if (slots_.size() == 0) return;
  const PrefixNodeId id = blocks_[block].node;
  const int32_t group = blocks_[block].group;
  Node& node = nodes_.at(id);  // lives on: the block is cached under it
  if (on_host(node, group)) return slots_.touch(node.slots[group]);
  const int32_t slot = slots_.oldest();
  if (slot < 0) return;  // all are about to be read: the block is lost
  if (slots_[slot].node) clear_slot(slot);
  slots_.fill(slot, id, group);
  node.slots[group] = slot;
  ++node.refs;
  copies.push_back({.block = block, .slot = slot, .group = group, .to_host = true});
}

void BlockPool::clear_slot(int32_t slot) {
  const PrefixNodeId id = slots_[slot].node;
  nodes_.at(id).slots[slots_[slot].group] = -1;
  slots_.clear(slot);
  unref_node(id);
}

void BlockPool::forget_host() {
  for (int32_t s = 0; s < slots_.size(); ++s)
    if (slots_[s].node) clear_slot(s);
}

}  // namespace pinion
