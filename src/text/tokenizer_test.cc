#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <thread>

#include "base/json.h"
#include "text/detokenizer.h"

namespace pinion {
namespace {

const std::filesystem::path golden = std::filesystem::path(PINION_GOLDEN_DIR) / "tokenizers";

std::vector<std::string> golden_kinds() {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(golden, error)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

Tokenizer load_golden(const std::string& kind) {
  auto made = Tokenizer::load(golden / kind);
  EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
  return std::move(made).value();
}

Json golden_cases(const std::string& kind) {
  auto cases = read_json_file(golden / kind / "cases.json");
  EXPECT_TRUE(cases.ok());
  return cases.ok() ? *cases : Json::array();
}

class GoldenTokenizer : public testing::TestWithParam<std::string> {};

TEST_P(GoldenTokenizer, GivesTheReferencesIdsAndText) {
  const Tokenizer tokenizer = load_golden(GetParam());
  const Json cases = golden_cases(GetParam());
  ASSERT_GT(cases.size(), 50u);
  for (const Json& item : cases) {
    const auto text = item["text"].get<std::string>();
    const auto ids = item["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.encode(text), ids) << text.substr(0, 200);
    EXPECT_EQ(tokenizer.encode(text, false), item["ids_no_special"].get<std::vector<int32_t>>()) << text.substr(0, 200);
    EXPECT_EQ(tokenizer.decode(ids), item["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer.decode(ids, true), item["decoded_skip"].get<std::string>());
    for (const int32_t id : ids) {
      EXPECT_LT(id, tokenizer.vocab_size());
      EXPECT_EQ(tokenizer.token_id(tokenizer.id_to_token(id)), id);
    }
  }
}

TEST_P(GoldenTokenizer, StreamsTheSameTextAsItDecodes) {
  const Tokenizer tokenizer = load_golden(GetParam());
  for (const Json& item : golden_cases(GetParam())) {
    const auto ids = item["ids"].get<std::vector<int32_t>>();
    for (const bool skip : {false, true}) {
      Detokenizer stream(tokenizer, skip);
      std::string text;
      for (const int32_t id : ids) {
        const std::string part = stream.push(id);
        EXPECT_EQ(Json(part).dump(-1, ' ', false, Json::error_handler_t::ignore), Json(part).dump());  // whole UTF-8
        text += part;
      }
      EXPECT_EQ(text + stream.finish(), item[skip ? "decoded_skip" : "decoded"].get<std::string>());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, GoldenTokenizer, testing::ValuesIn(golden_kinds()),
                         [](const auto& p) { return p.param; });

TEST(GoldenTokenizers, AllKindsAreThere) {
  EXPECT_EQ(golden_kinds().size(), 13u);
}

// Time must not grow with the square of the text: these would take hours if it did.
TEST_P(GoldenTokenizer, TakesAMegabyteOfOneLetter) {
  const Tokenizer tokenizer = load_golden(GetParam());
  for (const char* unit : {"a", "1", " ", "\n", "!", "\u65e5", "\u0301\u0323", "\xff"}) {
    std::string text;
    while (text.size() < 1 << 20) text += unit;
    const auto start = std::chrono::steady_clock::now();
    const auto ids = tokenizer.encode(text);
    const auto back = tokenizer.decode(ids, true);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20)) << unit;
    EXPECT_FALSE(ids.empty());
  }
}

TEST(Tokenizer, ManyThreadsGetTheSameIds) {
  const Tokenizer tokenizer = load_golden("llama3");
  const Json cases = golden_cases("llama3");
  std::vector<std::thread> threads;
  std::array<int, 4> wrong{};
  for (auto& count : wrong) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        for (const Json& item : cases) {
          count += tokenizer.encode(item["text"].get<std::string>()) != item["ids"].get<std::vector<int32_t>>();
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(wrong, testing::Each(0));
}

TEST(Tokenizer, SplitsSpecialTokensOfUntrustedText) {
  const Tokenizer tokenizer = load_golden("llama3");
  const int32_t eot = tokenizer.token_id("<|eot_id|>").value();
  EXPECT_TRUE(tokenizer.is_special(eot));
  EXPECT_THAT(tokenizer.encode("a<|eot_id|>", false), testing::Contains(eot));
  EXPECT_THAT(tokenizer.encode("a<|eot_id|>", false, true), testing::Not(testing::Contains(eot)));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a<|eot_id|>", false, true), true), "a<|eot_id|>");
}

TEST(Tokenizer, LeavesOutIdsItDoesNotHave) {
  const Tokenizer tokenizer = load_golden("llama3");
  const std::vector<int32_t> ids{-1, tokenizer.vocab_size(), INT32_MAX, INT32_MIN};
  EXPECT_EQ(tokenizer.decode(ids), "");
  EXPECT_EQ(tokenizer.id_to_token(-1), "");
  EXPECT_EQ(tokenizer.token_bytes(INT32_MAX), "");
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_FALSE(tokenizer.token_id("no such token").has_value());
}

TEST(Tokenizer, TokenBytesJoinToTheText) {
  const std::string text = "Hello world, \u65e5\u672c \U0001F600!";
  for (const char* kind : {"llama3", "gemma", "gpt2", "deepseek_v3"}) {
    const Tokenizer tokenizer = load_golden(kind);
    std::string bytes;
    for (const int32_t id : tokenizer.encode(text, false)) bytes += tokenizer.token_bytes(id);
    EXPECT_EQ(bytes, text) << kind;
  }
}

}  // namespace
}  // namespace pinion
