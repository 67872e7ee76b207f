// Small tokenizer files written here: component behaviour that the golden kinds do not reach, and files that are wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <fstream>

#include "base/json.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace pinion {
namespace {

using Ids = std::vector<int32_t>;

// BPE with bytes: ids 0-5 are a b c ab bc abc, 6 is <unk>, 7.. are the 256 byte tokens.
Json bpe_file() {
  Json vocab{{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"bc", 4}, {"abc", 5}, {"<unk>", 6}};
  for (int i = 0; i < 256; ++i) vocab[fmt::format("<0x{:02X}>", i)] = 7 + i;
  return {{"version", "1.0"},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"merges", {"a b", "b c", "ab c"}},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true}}},
          {"decoder", {{"type", "Sequence"}, {"decoders", {{{"type", "ByteFallback"}}, {{"type", "Fuse"}}}}}}};
}

Json added(int id, const std::string& content, const Json& flags = Json::object()) {
  Json token{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
             {"rstrip", false}, {"normalized", false}, {"special", false}};
  token.update(flags);
  return token;
}

Tokenizer make(const Json& file, const Json& config = nullptr) {
  auto made = Tokenizer::parse(file.dump(), "test", config.is_null() ? "" : config.dump());
  EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
  return std::move(made).value();
}

std::string error_of(const std::string& json, const std::string& config = "") {
  const auto made = Tokenizer::parse(json, "here", config);
  EXPECT_FALSE(made.ok()) << json.substr(0, 300);
  return made.ok() ? "" : made.error().message;
}

TEST(BpeFile, MergesByRankAndHonoursIgnoreMerges) {
  Json file = bpe_file();
  EXPECT_EQ(make(file).encode("abcbc"), (Ids{5, 4}));
  file["model"]["vocab"]["abcbc"] = 300;
  EXPECT_EQ(make(file).encode("abcbc"), (Ids{5, 4}));
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(make(file).encode("abcbc"), (Ids{300}));
}

TEST(BpeFile, ALaterMergeOfTheSamePairCounts) {
  Json file = bpe_file();
  file["model"]["merges"] = Json::array({Json{"a", "b"}, Json{"b", "c"}, Json{"a", "b"}});
  EXPECT_EQ(make(file).encode("abc"), (Ids{0, 4}));
}

TEST(BpeFile, LongWordsMergeLikeShortOnes) {
  const Tokenizer tokenizer = make(bpe_file());
  std::string text;
  Ids expected;
  for (int i = 0; i < 1000; ++i) {
    text += "abcbcacab";
    expected.insert(expected.end(), {5, 4, 0, 2, 3});
  }
  EXPECT_EQ(tokenizer.encode(text), expected);
  EXPECT_EQ(tokenizer.decode(expected), text);
}

TEST(BpeFile, FallsBackToBytesAndFusesUnknowns) {
  Json file = bpe_file();
  EXPECT_EQ(make(file).encode("€"), (Ids{7 + 0xE2, 7 + 0x82, 7 + 0xAC}));
  file["model"]["byte_fallback"] = false;
  EXPECT_EQ(make(file).encode("a€€b"), (Ids{0, 6, 1}));
  file["model"]["fuse_unk"] = false;
  EXPECT_EQ(make(file).encode("a€€b"), (Ids{0, 6, 6, 1}));
  file["model"].erase("unk_token");
  EXPECT_EQ(make(file).encode("a€€b"), (Ids{3}));
}

TEST(Detokenizer, HoldsARunOfBytesUntilItIsCertain) {
  const Tokenizer tokenizer = make(bpe_file());
  const std::string bad = "\uFFFD";
  EXPECT_EQ(tokenizer.decode(Ids{7 + 0xE2, 7 + 0x82, 7 + 0xAC}), "€");
  EXPECT_EQ(tokenizer.decode(Ids{7 + 0xE2, 7 + 0x82}), bad + bad);
  Detokenizer stream(tokenizer);
  EXPECT_EQ(stream.push(7 + 0xE2), "");
  EXPECT_EQ(stream.push(7 + 0x82), "");
  EXPECT_EQ(stream.push(7 + 0xAC), "");
  EXPECT_EQ(stream.push(5), "€abc");
  EXPECT_EQ(stream.push(7 + 0xE2), "");
  EXPECT_EQ(stream.finish(), bad);
  EXPECT_EQ(stream.push(0), "a");
}

TEST(Detokenizer, ByteLevelHoldsOnlyAnUnfinishedCharacter) {
  const auto made = Tokenizer::load(std::filesystem::path(PINION_GOLDEN_DIR) / "tokenizers/gpt2");
  ASSERT_TRUE(made.ok());
  const Ids bytes{*made->token_id("ð"), *made->token_id("Ł"), *made->token_id("ĺ"), *made->token_id("Ģ")};
  Detokenizer stream(*made);
  EXPECT_EQ(stream.push(bytes[0]), "");
  EXPECT_EQ(stream.push(bytes[1]), "");
  EXPECT_EQ(stream.push(bytes[2]), "");
  EXPECT_EQ(stream.push(bytes[3]), "😀");
  EXPECT_EQ(stream.push(bytes[0]), "");
  EXPECT_EQ(stream.push(*made->token_id("a")), "\uFFFDa");
  EXPECT_EQ(stream.push(bytes[0]), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST(Detokenizer, ContextKeepsTheFirstWordsSpace) {
  const auto made = Tokenizer::load(std::filesystem::path(PINION_GOLDEN_DIR) / "tokenizers/llama2");
  ASSERT_TRUE(made.ok());
  const Ids ids = made->encode("Hello world", false);
  const auto all = [&](Detokenizer stream) {
    std::string text;
    for (const int32_t id : ids) text += stream.push(id);
    return text + stream.finish();
  };
  EXPECT_EQ(all(Detokenizer(*made)), "Hello world");
  EXPECT_EQ(all(Detokenizer(*made, false, ids)), " Hello world");
}

TEST(AddedTokensOfAFile, StripAndSingleWord) {
  Json file = bpe_file();
  file["added_tokens"] = {added(400, "<L>", {{"lstrip", true}}), added(401, "<R>", {{"rstrip", true}}),
                          added(402, "cat", {{"single_word", true}}), added(403, "<RR>"), added(404, "abc")};
  const Tokenizer tokenizer = make(file);
  const auto space = 7 + ' ';
  EXPECT_EQ(tokenizer.encode("a  <L> b"), (Ids{0, 400, space, 1}));
  EXPECT_EQ(tokenizer.encode("a <R> \n b"), (Ids{0, space, 401, 1}));
  EXPECT_EQ(tokenizer.encode("cat cats"), (Ids{402, space, 2, 0, 7 + 't', 7 + 's'}));
  EXPECT_EQ(tokenizer.encode("<RR>"), (Ids{403}));
  EXPECT_EQ(tokenizer.token_id("abc"), 5);  // the model's own id counts
  EXPECT_EQ(tokenizer.vocab_size(), 404);
}

TEST(TokenizerConfig, OverridesFlagsAddsTokensAndBos) {
  Json file = bpe_file();
  file["added_tokens"] = {added(400, "<s>")};
  const Json config{
      {"add_bos_token", true},
      {"bos_token", {{"content", "<s>"}}},
      {"added_tokens_decoder", {{"400", {{"content", "<s>"}, {"special", true}}}, {"401", {{"content", "<new>"}}}}}};
  EXPECT_FALSE(make(file).is_special(400));
  const Tokenizer tokenizer = make(file, config);
  EXPECT_TRUE(tokenizer.is_special(400));
  EXPECT_EQ(tokenizer.encode("a<new>"), (Ids{400, 0, 401}));
  EXPECT_EQ(tokenizer.encode("a<new>", false), (Ids{0, 401}));
}

TEST(UnigramFile, TakesTheBestPathAndFusesUnknowns) {
  const Json file{{"model",
                   {{"type", "Unigram"},
                    {"unk_id", 0},
                    {"vocab", Json::array({Json{"<unk>", 0.0}, Json{"a", -1.0}, Json{"b", -1.0}, Json{"ab", -1.5},
                                           Json{"aba", -9.0}})}}}};
  EXPECT_EQ(make(file).encode("abaxyb"), (Ids{3, 1, 0, 2}));
}

TEST(HostileFile, IsAClearError) {
  const auto broken = [&](const char* pointer, const Json& value) {
    Json file = bpe_file();
    file["added_tokens"] = {added(400, "<s>")};
    file[Json::json_pointer(pointer)] = value;
    const std::string message = error_of(file.dump());
    EXPECT_THAT(message, testing::HasSubstr("here")) << pointer;
    return message;
  };
  for (const char* text : {"", "{", "[]", "null", "3", "{}", "\"x\"", "{\"model\":[]}", "{\"model\":{}}",
                           "{\"model\":{\"type\":\"BPE\"}}", "{\"model\":{\"type\":\"Magic\",\"vocab\":{}}}",
                           "{\"version\":\"2.0\"}", "{\"version\":1}", "{\"a\":1,\"a\":2}", "\xff"}) {
    error_of(text);
  }
  broken("/model/vocab", "x");
  broken("/model/vocab/a", -1);
  broken("/model/vocab/a", 1.5);
  broken("/model/vocab/a", "0");
  broken("/model/vocab/a", 2000000000);
  broken("/model/vocab/a", 18446744073709551615u);
  EXPECT_THAT(broken("/model/merges/1", "b zzz"), testing::HasSubstr("zzz"));
  EXPECT_THAT(broken("/model/merges/1", "b b"), testing::HasSubstr("\"bb\""));
  broken("/model/merges", "a b");
  broken("/model/merges/0", "ab");
  broken("/model/merges/0", "a b c");
  broken("/model/merges/0", Json{"a"});
  broken("/model/merges/0", 7);
  broken("/model/byte_fallback", "yes");
  broken("/model/unk_token", 5);
  broken("/added_tokens", 5);
  broken("/added_tokens/0", 5);
  broken("/added_tokens/0/id", -1);
  broken("/added_tokens/0/id", 1e18);
  broken("/added_tokens/0/id", 18446744073709551615u);
  broken("/added_tokens/0/content", nullptr);
  broken("/added_tokens/0/content", std::string(100000, 'x'));
  broken("/added_tokens/0/special", "true");
  broken("/normalizer", {{"type", "Nope"}});
  broken("/normalizer", {{"type", "Sequence"}, {"normalizers", 3}});
  broken("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "("}}}, {"content", ""}});
  broken("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}});
  broken("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "!!!"}});
  broken("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "/////w=="}});
  broken("/pre_tokenizer", "ByteLevel");
  broken("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "[a"}}}, {"behavior", "Isolated"}});
  broken("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Cut"}});
  broken("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "ab"}});
  broken("/pre_tokenizer", {{"type", "FixedLength"}, {"length", 0}});
  broken("/pre_tokenizer", {{"type", "UnicodeScripts"}});
  broken("/post_processor", {{"type", "TemplateProcessing"}, {"single", Json::array()}});
  broken("/post_processor", {{"type", "BertProcessing"}, {"sep", {"x", -3}}, {"cls", {"y", 1}}});
  broken("/decoder", {{"type", "CTC"}});
  broken("/decoder", {{"type", "Strip"}, {"content", "ab"}});
  Json many{{"type", "Sequence"}, {"decoders", Json::array()}};
  for (int i = 0; i < 1000; ++i) many["decoders"].push_back({{"type", "Fuse"}});
  broken("/decoder", many);
  Json deep{{"type", "NFC"}};
  for (int i = 0; i < 100; ++i) deep = {{"type", "Sequence"}, {"normalizers", {deep}}};
  broken("/normalizer", deep);
  error_of(bpe_file().dump(), "{\"added_tokens_decoder\":{\"x\":{\"content\":\"y\"}}}");
  error_of(bpe_file().dump(), "{");
}

TEST(HostileFile, TextCannotExplode) {
  Json file = bpe_file();
  Json steps = Json::array();
  for (int i = 0; i < 60; ++i)
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}});
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  EXPECT_LE(make(file).encode("a").size(), size_t{1} << 24);
}

TEST(LoadTokenizer, NamesWhatIsMissing) {
  const std::filesystem::path dir = std::filesystem::path(testing::TempDir()) / "pinion_tokenizer_test";
  std::filesystem::create_directories(dir);
  EXPECT_EQ(Tokenizer::load(dir).error().code, Errc::not_found);
  std::ofstream(dir / "tokenizer.model") << "x";
  EXPECT_EQ(Tokenizer::load(dir).error().code, Errc::unsupported);
  std::filesystem::remove_all(dir);
  EXPECT_FALSE(Tokenizer::load(dir / "tokenizer.json").ok());
}

}  // namespace
}  // namespace pinion
