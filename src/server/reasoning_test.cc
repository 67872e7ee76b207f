#include "server/reasoning.h"

#include <gtest/gtest.h>

#include <utility>

namespace pinion {
namespace {

std::pair<std::string, std::string> split(std::string_view text, bool open, size_t cut) {
  ReasoningParser parser(open);
  std::pair<std::string, std::string> out;
  parser.add(text.substr(0, cut), false, out.first, out.second);
  parser.add(text.substr(cut), true, out.first, out.second);
  return out;
}

TEST(Reasoning, SameResultWhereverTheTextIsCut) {
  struct Case {
    const char* text;
    bool open;
    const char *reasoning, *content;
  };
  const Case cases[] = {
      {"<think>\nSo 1 < 2.\n</think>\n\nYes.", false, "So 1 < 2.", "Yes."},
      {"So.\n</think>\n\nYes. ", true, "So.", "Yes. "},
      {"\n<think>never ends", false, "never ends", ""},
      {"never ends", true, "never ends", ""},
      {"No thought.", false, "", "No thought."},
      {" <thin ice", false, "", " <thin ice"},
      {"<think></think>A</think>", false, "", "A</think>"},
      {"", true, "", ""},
      {"  ", false, "", "  "},
      {"a </thin b</think>c", true, "a </thin b", "c"},
  };
  for (const Case& c : cases) {
    const std::string_view text = c.text;
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      const auto [reasoning, content] = split(text, c.open, cut);
      EXPECT_EQ(reasoning, c.reasoning) << text << " at " << cut;
      EXPECT_EQ(content, c.content) << text << " at " << cut;
    }
  }
}

TEST(Reasoning, BlanksInsideAreKept) {
  ReasoningParser parser(true);
  std::string reasoning, content;
  for (const char c : std::string("a \n b </think> d  e")) parser.add(std::string(1, c), false, reasoning, content);
  parser.add("", true, reasoning, content);
  EXPECT_EQ(reasoning, "a \n b");
  EXPECT_EQ(content, "d  e");
}

TEST(Reasoning, ThePromptTellsWhetherItIsOpen) {
  EXPECT_TRUE(ReasoningParser::open_after("<|im_start|>assistant\n<think>\n"));
  EXPECT_FALSE(ReasoningParser::open_after("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
  EXPECT_FALSE(ReasoningParser::open_after("<|im_start|>assistant\n"));
}

}  // namespace
}  // namespace pinion
