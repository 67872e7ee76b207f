#include "server/tool_calls.h"

#include <gtest/gtest.h>

namespace pinion {
namespace {

constexpr std::string_view two =
    "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": "
    "1}}\n</tool_call>\n<tool_call>{\"name\":\"g\"}</tool_call>";

TEST(ToolCalls, SameResultWhereverTheTextIsCut) {
  for (size_t cut = 0; cut <= two.size(); ++cut) {
    ToolCallParser parser;
    std::string content;
    std::vector<ToolCall> calls;
    parser.add(two.substr(0, cut), false, content, calls);
    parser.add(two.substr(cut), true, content, calls);
    ASSERT_EQ(calls.size(), 2U) << cut;
    EXPECT_EQ(calls[0].name, "f");
    EXPECT_EQ(calls[0].arguments, R"({"a":1})");
    EXPECT_EQ(calls[1].arguments, "{}");
    EXPECT_EQ(content.substr(0, 11), "Let me see.") << cut;
    EXPECT_EQ(content.find('<'), std::string::npos) << cut;
  }
}

TEST(ToolCalls, WhatIsNoCallStaysText) {
  for (const std::string text : {"a < b", "<tool_cal", "<tool_call>not json</tool_call>",
                                 "<tool_call>{\"name\": 3}</tool_call>", "<tool_call>[1,2]", "  spaces  "}) {
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      ToolCallParser parser;
      std::string content;
      std::vector<ToolCall> calls;
      parser.add(text.substr(0, cut), false, content, calls);
      parser.add(text.substr(cut), true, content, calls);
      EXPECT_EQ(content, text) << cut;
      EXPECT_TRUE(calls.empty());
    }
  }
}

TEST(ToolCalls, ACallThatEndsWithTheText) {
  ToolCallParser parser;
  std::string content;
  std::vector<ToolCall> calls;
  parser.add("<tool_call>{\"name\":\"f\",\"arguments\":{}}", true, content, calls);
  ASSERT_EQ(calls.size(), 1U);
  EXPECT_EQ(content, "");
}

}  // namespace
}  // namespace pinion
