// Stop strings: whatever the cuts, the same text is sent, and nothing of a stop string ever is.
#include "runtime/output_text.h"

#include <gtest/gtest.h>

#include <random>

namespace pinion {
namespace {

struct Seen {
  std::string text;
  std::optional<std::string> stopped;
};

Seen run(const std::vector<std::string>& pieces, std::vector<std::string> stop, bool include = false) {
  StopMatcher matcher(std::move(stop), include);
  Seen seen;
  for (const auto& piece : pieces) seen.text += matcher.push(piece);
  seen.text += matcher.finish();
  seen.stopped = matcher.stopped();
  return seen;
}

TEST(StopMatcher, AcrossPieces) {
  EXPECT_EQ(run({"Hello", " wo", "rld"}, {"o w"}).text, "Hell");
  EXPECT_EQ(run({"Hello", " wo", "rld"}, {"o w"}, true).text, "Hello w");
  EXPECT_EQ(*run({"Hello", " wo", "rld"}, {"x", "o w"}).stopped, "o w");
  EXPECT_EQ(run({"Hell", "o"}, {"lox"}).text, "Hello") << "held back, then given out";
  EXPECT_EQ(run({"aab"}, {"ab"}).text, "a");
  EXPECT_EQ(run({"abcd"}, {"abcd", "bc"}).text, "a") << "bc ends first";
  EXPECT_EQ(run({"abc"}, {"bc", "abc"}).text, "") << "both end here: the longest";
  EXPECT_EQ(run({"text"}, {}).text, "text");
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBeABeginning) {
  StopMatcher matcher({"\n\nUser"}, false);
  EXPECT_EQ(matcher.push("Hi.\n"), "Hi.");
  EXPECT_EQ(matcher.push("\nU"), "");
  EXPECT_EQ(matcher.push("se it\n"), "\n\nUse it");
  EXPECT_EQ(matcher.finish(), "\n");
}

TEST(StopMatcher, NothingAfterTheStop) {
  StopMatcher matcher({"END"}, false);
  EXPECT_EQ(matcher.push("a END b"), "a ");
  EXPECT_EQ(matcher.push("c"), "");
  EXPECT_EQ(matcher.pass("d"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, PassSkipsTheSearch) {
  StopMatcher matcher({"ab"}, false);
  EXPECT_EQ(matcher.pass("ab a"), "ab a");
  EXPECT_EQ(matcher.push("bab"), "b") << "the a before it was sent unsearched";
}

TEST(StopMatcher, CutsMakeNoDifference) {
  std::mt19937 random(4);
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (int i = random() % 14; i-- > 0;) text += static_cast<char>('a' + random() % 2);
    std::vector<std::string> stop(1 + random() % 3);
    for (auto& s : stop)
      for (int i = 1 + random() % 4; i-- > 0;) s += static_cast<char>('a' + random() % 2);
    const bool include = random() % 2;
    std::vector<std::string> bytes, pieces(1);
    for (const char c : text) {
      bytes.emplace_back(1, c);
      if (random() % 3 == 0) pieces.emplace_back();
      pieces.back() += c;
    }
    const Seen a = run(bytes, stop, include), b = run(pieces, stop, include);
    ASSERT_EQ(a.text, b.text) << text;
    ASSERT_EQ(a.stopped, b.stopped) << text;
    bool any = false;
    for (const auto& s : stop) any |= text.find(s) != std::string::npos;
    ASSERT_EQ(any, a.stopped.has_value());
    if (!any) {
      ASSERT_EQ(a.text, text);
    } else if (!include) {
      for (const auto& s : stop) ASSERT_EQ(a.text.find(s), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace pinion
