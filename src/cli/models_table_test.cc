// The page for users says what the program says.
#include "cli/models_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "backend/all/backends.h"
#include "models/families.h"

namespace pinion::cli {
namespace {

TEST(ModelsTable, EveryFamilyRunsOnTheCpuAndDivides) {
  const auto rows = family_rows();
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  ASSERT_EQ(rows->size(), model_families().size());
  for (const FamilyRow& r : *rows) {
    EXPECT_TRUE(std::ranges::count(r.backends, "cpu")) << r.architecture;
    EXPECT_TRUE(std::ranges::count(r.backends, "reference")) << r.architecture;
    EXPECT_TRUE(std::ranges::count(r.sharding, "tensor")) << r.architecture;
  }
}

TEST(ModelsTable, IsThePageInTheGuide) {
  if (backends().size() != 2) GTEST_SKIP() << "the page is that of a build without CUDA";
  const auto rows = family_rows();
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  std::ifstream file(PINION_SOURCE_DIR "/docs/guide/models.md");
  std::stringstream page;
  page << file.rdbuf();
  EXPECT_EQ(page.str(), models_markdown(*rows)) << "write it anew: pinion doctor --models --markdown";
}

}  // namespace
}  // namespace pinion::cli
