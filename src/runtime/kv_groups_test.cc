// How much of the pool a graph's layers take.
#include <gtest/gtest.h>

#include "runtime/engine_executor.h"

namespace pinion {
namespace {

TEST(KvGroups, ALatentLayerCachesOneRowPerToken) {
  Graph g;
  g.kv_layers = {{1, 576, 0, true}, {1, 576, 0, true}};  // DeepSeek-V3: 512 + 64 columns, never the 128 heads
  auto groups = kv_groups(g, DType::bf16, 64);
  ASSERT_EQ(groups.size(), 1);
  EXPECT_EQ(groups[0].layers, 2);
  EXPECT_EQ(groups[0].block_bytes, 2 * 576 * 64 * 2);
  g.kv_layers.push_back({8, 128, 0});  // keys and values
  groups = kv_groups(g, DType::bf16, 64);
  ASSERT_EQ(groups.size(), 1);
  EXPECT_EQ(groups[0].block_bytes, 2 * 576 * 64 * 2 + 2 * 8 * 128 * 64 * 2);
  g.kv_layers.push_back({8, 128, 4096});  // behind a window of its own: another group
  EXPECT_EQ(kv_groups(g, DType::bf16, 64).size(), 2);
}

}  // namespace
}  // namespace pinion
