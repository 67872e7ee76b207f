// The pool's accounts, hits across windows, collisions, and a planted leak that the integrity check must find.
#include "runtime/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace pinion {
namespace {

std::vector<int32_t> tokens(int32_t n, int32_t from = 0) {
  std::vector<int32_t> result(n);
  std::iota(result.begin(), result.end(), from);
  return result;
}

BlockPool make(int32_t blocks, std::vector<int32_t> windows = {0}, int hash_bits = 64) {
  return BlockPool({.num_blocks = blocks, .block_size = 4, .windows = std::move(windows), .hash_bits = hash_bits});
}

void write(BlockPool& pool, KvTable& table, const std::vector<int32_t>& content, const PrefixRoot& root = {}) {
  pool.attach(table, root, content, 0);
  for (int32_t end = 1; end <= static_cast<int32_t>(content.size()); ++end) {
    pool.grow(table, end);
    pool.written(table, content, end);
  }
}

TEST(BlockPool, ReusesWholeBlocksWithinOneRoot) {
  BlockPool pool = make(16);
  KvTable a;
  const auto content = tokens(10);
  const PrefixRoot root{.cache_salt = "x"};
  write(pool, a, content, root);
  EXPECT_EQ(pool.used_blocks(), 3);
  EXPECT_EQ(pool.match(root, content, 10), 8);
  EXPECT_EQ(pool.match(root, content, 7), 4);
  EXPECT_EQ(pool.match({.cache_salt = "y"}, content, 10), 0);
  EXPECT_EQ(pool.match({.cache_salt = "x", .rope_variant = 1}, content, 10), 0);
  EXPECT_EQ(pool.match({.cache_salt = "x", .adapter = "a"}, content, 10), 0);
  EXPECT_NE((PrefixRoot{.cache_salt = "ab", .adapter = "c"}).key(),
            (PrefixRoot{.cache_salt = "a", .adapter = "bc"}).key());

  KvTable b;
  pool.attach(b, root, content, 8);
  EXPECT_EQ(pool.used_blocks(), 3);
  EXPECT_EQ(b.blocks[0], (std::vector<int32_t>{a.blocks[0][0], a.blocks[0][1]}));
  const KvTable* live[] = {&a, &b};
  EXPECT_EQ(pool.integrity(live), "");
  pool.release(a);
  pool.release(b);
  EXPECT_EQ(pool.integrity({}), "");
  EXPECT_EQ(pool.used_blocks(), 0);
  EXPECT_EQ(pool.match(root, content, 10), 8) << "cached while free";
}

TEST(BlockPool, EvictsTheLeastRecentlyUsedEndFirst) {
  BlockPool pool = make(4);
  KvTable a, b;
  write(pool, a, tokens(8));
  write(pool, b, tokens(8, 100));
  pool.release(a);
  pool.release(b);
  KvTable c;
  write(pool, c, tokens(4, 200));  // takes the end of a, the oldest
  EXPECT_EQ(pool.match({}, tokens(8), 8), 4);
  EXPECT_EQ(pool.match({}, tokens(8, 100), 8), 8);
  pool.release(c);
}

TEST(BlockPool, WindowedGroupsFreeBehindTheWindowAndHitWithoutIt) {
  BlockPool pool = make(65, {0, 6});
  KvTable a;
  const auto content = tokens(20);
  pool.attach(a, {}, content, 0);
  for (int32_t end = 1; end <= 20; ++end) {
    pool.grow(a, end);
    int32_t held = 0;
    for (const int32_t b : a.blocks[1]) held += b >= 0;
    EXPECT_LE(held, pool.peak(end) - (end + 3) / 4) << end;
    pool.written(a, content, end);
  }
  // The query at 20 sees 15 … 19: blocks 3 and 4 stay.
  EXPECT_EQ(a.blocks[1][2], -1);
  EXPECT_GE(a.blocks[1][3], 0);
  EXPECT_EQ(pool.match({}, content, 20), 20);
  const KvTable* live[] = {&a};
  EXPECT_EQ(pool.integrity(live), "");
  pool.release(a);

  // Evict the windowed blocks 0 … 2, freed first: the whole prefix still hits, a shorter one does not.
  KvTable filler;
  pool.attach(filler, {.cache_salt = "other"}, content, 0);
  pool.grow(filler, 4 * (65 - 10 + 3) / 2);  // all that is not cached, and three
  EXPECT_EQ(pool.match({}, content, 20), 20);
  EXPECT_EQ(pool.match({}, content, 19), 0);
  KvTable b;
  pool.attach(b, {}, content, 20);
  EXPECT_EQ(b.blocks[1][2], -1);
  EXPECT_GE(b.blocks[1][3], 0);
  const KvTable* both[] = {&b, &filler};
  EXPECT_EQ(pool.integrity(both), "");
}

TEST(BlockPool, CollidingHashesNeverGiveAWrongHit) {
  BlockPool pool = make(64, {0}, 2);  // four hash values for everything
  std::vector<KvTable> tables(8);
  std::vector<const KvTable*> live;
  for (int32_t i = 0; i < 8; ++i) {
    const auto content = tokens(12, 100 * i);
    const int32_t hit = pool.match({}, content, 12);
    EXPECT_EQ(hit, 0);
    write(pool, tables[i], content);
    live.push_back(&tables[i]);
  }
  for (int32_t i = 0; i < 8; ++i) {
    const auto content = tokens(12, 100 * i);
    const int32_t hit = pool.match({}, content, 12);
    const auto blocks = pool.hit_blocks({}, content, hit).shared;
    for (size_t b = 0; b < blocks.size(); ++b) EXPECT_EQ(blocks[b], tables[i].blocks[0][b]);
  }
  EXPECT_EQ(pool.integrity(live), "");
}

// What is evicted comes back from the host, in the order of its use there, and the copies say so.
TEST(BlockPool, TheHostKeepsWhatIsEvicted) {
  BlockPool pool({.num_blocks = 4, .block_size = 4, .windows = {0}, .host_slots = 3});
  const auto content = tokens(12);
  KvTable a, b, c;
  write(pool, a, content);
  const std::vector<int32_t> pages = a.blocks[0];
  pool.release(a);
  EXPECT_TRUE(pool.moves().copies.empty()) << "nothing was evicted";
  write(pool, b, tokens(16, 100));
  const BlockMoves out = pool.moves();
  EXPECT_TRUE(out.awaited);
  ASSERT_EQ(out.copies.size(), 3u);
  for (const BlockCopy& copy : out.copies) EXPECT_TRUE(copy.to_host);
  EXPECT_EQ(pool.host_blocks(), 3);
  pool.release(b);

  ASSERT_EQ(pool.match({}, content, 12), 12);
  const HitBlocks hit = pool.hit_blocks({}, content, 12);
  EXPECT_TRUE(hit.shared.empty());
  EXPECT_EQ(hit.fetched, 3);
  pool.attach(c, {}, content, 12);
  EXPECT_NE(pool.integrity({}), "") << "before fetch() slots are pinned";
  pool.fetch();
  const BlockMoves in = pool.moves();
  EXPECT_TRUE(in.awaited);
  // The pages taken hold blocks of b, which go to slots that were read before.
  int fetched = 0;
  for (const BlockCopy& copy : in.copies) {
    if (copy.to_host) continue;
    ++fetched;
    const auto sent = std::ranges::find(out.copies, copy.slot, &BlockCopy::slot);
    ASSERT_NE(sent, out.copies.end());
    const auto from = std::ranges::find(pages, sent->block);
    const auto to = std::ranges::find(c.blocks[0], copy.block);
    EXPECT_EQ(from - pages.begin(), to - c.blocks[0].begin()) << "a block has come back as another";
  }
  EXPECT_EQ(fetched, 3);
  EXPECT_EQ(pool.host_hits(), 3u);
  const KvTable* live[] = {&c};
  EXPECT_EQ(pool.integrity(live), "");
  pool.forget(c);
  EXPECT_EQ(pool.match({}, content, 12), 0) << "forgotten on the host too";
  pool.forget_host();
  EXPECT_EQ(pool.host_blocks(), 0);
  EXPECT_EQ(pool.integrity({}), "");
}

TEST(BlockPool, CopiesAheadLeaveNothingToCopyWhenPagesAreTaken) {
  BlockPool pool({.num_blocks = 4, .block_size = 4, .windows = {0}, .host_slots = 16});
  KvTable a, b;
  write(pool, a, tokens(16));
  EXPECT_TRUE(pool.copies_ahead(4).empty()) << "all are in use";
  pool.release(a);
  EXPECT_EQ(pool.copies_ahead(2).size(), 2u);
  EXPECT_TRUE(pool.copies_ahead(2).empty());
  EXPECT_EQ(pool.copies_ahead(100).size(), 2u) << "of the first quarter of the slots' number";
  write(pool, b, tokens(16, 100));
  const BlockMoves moves = pool.moves();
  EXPECT_TRUE(moves.copies.empty());
  EXPECT_TRUE(moves.awaited) << "the pages are written now, and their copies may be under way";
  EXPECT_EQ(pool.match({}, tokens(16), 16), 16);
  const KvTable* live[] = {&b};
  EXPECT_EQ(pool.integrity(live), "");
}

TEST(BlockPool, ForgottenBlocksAreNotReused) {
  BlockPool pool = make(16);
  KvTable a, b;
  const auto content = tokens(8);
  write(pool, a, content);
  pool.attach(b, {}, content, 4);
  pool.forget(a);
  EXPECT_EQ(pool.match({}, content, 8), 0);
  const KvTable* live[] = {&b};
  EXPECT_EQ(pool.integrity(live), "");
  pool.release(b);
  EXPECT_EQ(pool.integrity({}), "");
  EXPECT_EQ(pool.free_blocks(), 16);
}

TEST(BlockPool, IntegrityFindsAPlantedLeak) {
  BlockPool pool = make(16, {0, 5});
  KvTable a, b;
  write(pool, a, tokens(9));
  write(pool, b, tokens(9, 50));
  const KvTable* live[] = {&a, &b};
  ASSERT_EQ(pool.integrity(live), "");
  const KvTable* forgotten[] = {&a};  // b's blocks are held by nobody: a leak
  EXPECT_NE(pool.integrity(forgotten), "");
  KvTable wrong = a;
  wrong.blocks[0][0] = wrong.blocks[0][1];  // one block twice, another lost
  const KvTable* broken[] = {&wrong, &b};
  EXPECT_NE(pool.integrity(broken), "");
  KvTable copy = a;
  pool.release(a);
  EXPECT_THROW(pool.release(copy), CheckFailure) << "released twice";
}

}  // namespace
}  // namespace pinion
