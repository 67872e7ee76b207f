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
  const auto rows = family_rows();
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  std::ifstream file(PINION_SOURCE_DIR "/docs/guide/models.md");
  std::stringstream page;
  page << file.rdbuf();
  std::string text = page.str();
  if (find_backend("cuda") == nullptr) {  // the page is that of a build with CUDA: compare what this one knows
    for (size_t at = 0; (at = text.find("cuda, ", at)) != std::string::npos;) text.erase(at, 6);
  }
  EXPECT_EQ(text, models_markdown(*rows)) << "write it anew: pinion doctor --models --markdown, of a build with CUDA";
}

}  // namespace
}  // namespace pinion::cli
