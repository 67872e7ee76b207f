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

struct FormCase {
  ToolFormat format;
  std::string text, content;
  std::vector<std::pair<std::string, std::string>> calls;
};

TEST(ToolCalls, EveryFamilysForm) {
  const FormCase cases[] = {
      {ToolFormat::llama3_json, R"({"name": "f", "parameters": {"a": 1}})", "", {{"f", R"({"a":1})"}}},
      {ToolFormat::llama3_json,
       R"(<|python_tag|>{"name":"f","parameters":{}}; {"name":"g","parameters":{"b":"};"}})",
       "",
       {{"f", "{}"}, {"g", R"({"b":"};"})"}}},
      {ToolFormat::llama3_json, R"({"answer": 42})", R"({"answer": 42})", {}},
      {ToolFormat::llama3_json,
       R"(It is {"name": "f", "parameters": {}})",
       R"(It is {"name": "f", "parameters": {}})",
       {}},
      {ToolFormat::llama3_json, R"({"name": "f", "parameters": {}} and)", R"({"name": "f", "parameters": {}} and)", {}},
      {ToolFormat::mistral,
       R"([TOOL_CALLS] [{"name":"f","arguments":{"a":[1]},"id":"x"}])",
       "",
       {{"f", R"({"a":[1]})"}}},
      {ToolFormat::mistral,
       R"(Wait.[TOOL_CALLS]f{"a":1}[TOOL_CALLS]g[ARGS]{"b":2})",
       "Wait.",
       {{"f", R"({"a":1})"}, {"g", R"({"b":2})"}}},
      {ToolFormat::mistral, "[TOOL_CALLS] none", "[TOOL_CALLS] none", {}},
      {ToolFormat::deepseek_v3,
       "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": "
       "1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><"
       "｜"
       "tool▁calls▁end｜>",
       "I look.",
       {{"f", R"({"a":1})"}, {"g", "{}"}}},
      {ToolFormat::deepseek_v3,
       "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\":1}<｜tool▁call▁end｜>",
       "",
       {{"f", R"({"a":1})"}}},
      {ToolFormat::none, "<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>", {}},
  };
  for (const FormCase& c : cases) {
    for (size_t cut = 0; cut <= c.text.size(); ++cut) {
      ToolCallParser parser(c.format);
      std::string content;
      std::vector<ToolCall> calls;
      parser.add(std::string_view(c.text).substr(0, cut), false, content, calls);
      parser.add(std::string_view(c.text).substr(cut), true, content, calls);
      EXPECT_EQ(content, c.content) << c.text << " at " << cut;
      ASSERT_EQ(calls.size(), c.calls.size()) << c.text << " at " << cut;
      for (size_t i = 0; i < calls.size(); ++i) {
        EXPECT_EQ(calls[i].name, c.calls[i].first);
        EXPECT_EQ(calls[i].arguments, c.calls[i].second);
      }
    }
  }
}

TEST(ToolCalls, TheTemplateTellsTheForm) {
  EXPECT_EQ(tool_format_of("… <tool_call>\n{\"name\": …"), ToolFormat::hermes);
  EXPECT_EQ(tool_format_of("{{ '[TOOL_CALLS] [' }}"), ToolFormat::mistral);
  EXPECT_EQ(tool_format_of("{{'<｜tool▁calls▁begin｜>'}}"), ToolFormat::deepseek_v3);
  EXPECT_EQ(tool_format_of(R"(Respond in the format {"name": function name, "parameters": dictionary)"),
            ToolFormat::llama3_json);
  EXPECT_EQ(tool_format_of("{{ messages[0].content }}"), ToolFormat::none);
  EXPECT_EQ(parse_tool_format("mistral"), ToolFormat::mistral);
  EXPECT_FALSE(parse_tool_format("other"));
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
