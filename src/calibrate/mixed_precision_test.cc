#include "calibrate/mixed_precision.h"

#include <gtest/gtest.h>

namespace pinion {
namespace {

const std::vector<LinearReport> kReport{{"a", "", 100, 50, 100, 0.02, 0.0001},
                                        {"b", "", 200, 100, 200, 0.08, 0.0001},
                                        {"c", "", 100, 50, 100, 0.001, 0.0001},
                                        {"head", "", 100, 100, 100, 0, 0}};  // in 8 bits already

TEST(MixedPrecision, OrdersByGainPerByteAndKeepsTheSize) {
  const auto order = by_gain(kReport);
  EXPECT_EQ(order, (std::vector<std::string>{"b", "a", "c"}));
  EXPECT_DOUBLE_EQ(bits_with(kReport, order, 0), 8.0 * 300 / 500);
  EXPECT_DOUBLE_EQ(bits_with(kReport, order, 3), 8);
  EXPECT_EQ(*count_for_size(kReport, order, 4.8), 0u);
  EXPECT_EQ(*count_for_size(kReport, order, 6.4), 1u);
  EXPECT_EQ(*count_for_size(kReport, order, 7.9), 2u);
  EXPECT_EQ(*count_for_size(kReport, order, 8), 3u);
  const auto less = count_for_size(kReport, order, 4.7);
  ASSERT_FALSE(less.ok());
  EXPECT_NE(less.error().message.find("4.80 bits"), std::string::npos) << less.error().message;
}

TEST(MixedPrecision, FindsTheFewestThatMeetALoss) {
  for (size_t need = 0; need <= 20; ++need) {
    int calls = 0;
    const auto n = count_for_loss(20, 1, [&](size_t k) -> Result<double> {
      ++calls;
      return k >= need ? 1.0 : 2.0;
    });
    ASSERT_TRUE(n.ok());
    EXPECT_EQ(*n, need);
    EXPECT_LE(calls, 7);
  }
  EXPECT_FALSE(count_for_loss(20, 1, [](size_t) -> Result<double> { return 2.0; }).ok());
  const auto failed = count_for_loss(20, 1, [](size_t k) -> Result<double> {
    if (k == 20) return fail(Errc::io, "the disk is full");
    return 2.0;
  });
  ASSERT_FALSE(failed.ok());
  EXPECT_NE(failed.error().message.find("disk is full"), std::string::npos);
}

}  // namespace
}  // namespace pinion
