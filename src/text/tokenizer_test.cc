#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace pinion
