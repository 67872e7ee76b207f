#include "text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "text/regex_syntax.h"
#include "text/unicode.h"

namespace pinion {
namespace {

using testing::ElementsAre;

Json split(const std::string& regex, const std::string& behavior = "Isolated", bool invert = false) {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", behavior}, {"invert", invert}};
}

std::vector<std::string> words_of(const Json& object, std::string_view text) {
  const auto made = PreTokenizer::parse(&object, "test");
  EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
  std::vector<std::string> out;
  if (!made.ok()) return out;
  Words words;
  made->run(text, true, words);
  for (const auto& range : words.ranges) out.emplace_back(words.text.substr(range.begin, range.end - range.begin));
  return out;
}

const std::string llama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string tekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

TEST(PreTokenizer, SplitsAsTheModelsPatternsDo) {
  EXPECT_THAT(words_of(split(llama3), "Hello world's 12345  test\n\n  x"),
              ElementsAre("Hello", " world", "'s", " ", "123", "45", " ", " test", "\n\n", " ", " x"));
  EXPECT_THAT(words_of(split(llama3), "I'LL don't  we'Re"), ElementsAre("I", "'LL", " don", "'t", " ", " we", "'Re"));
  EXPECT_THAT(words_of(split(llama3), "x'\u017F"), ElementsAre("x", "'\u017F"));  // long s equals s without case
  EXPECT_THAT(words_of(split(tekken), "CamelCaseHTTPServer's foo_bar"),
              ElementsAre("Camel", "Case", "HTTPServer", "'s", " foo", "_bar"));
  EXPECT_THAT(words_of(split(llama3), "١٢٣٤ Ⅷ½"), ElementsAre("١٢٣", "٤", " ", "Ⅷ½"));
  EXPECT_THAT(words_of({{"type", "ByteLevel"}, {"add_prefix_space", false}}, "a\tb \r\n c   "),
              ElementsAre("a", "\t", "b", " \r\n", " c", "   "));
}

TEST(PreTokenizer, SplitBehaviors) {
  const std::string text = "the-final--countdown";
  EXPECT_THAT(words_of(split("-", "Removed"), text), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(words_of(split("-"), text), ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(words_of(split("-", "MergedWithPrevious"), text), ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(words_of(split("-", "MergedWithNext"), text), ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(words_of(split("-", "Contiguous"), text), ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(words_of(split("-", "Removed", true), text), ElementsAre("-", "-", "-"));
}

TEST(PreTokenizer, OtherKinds) {
  EXPECT_THAT(words_of({{"type", "Metaspace"}}, "a b"), ElementsAre("▁a", "▁b"));
  EXPECT_THAT(words_of({{"type", "Metaspace"}, {"prepend_scheme", "never"}, {"split", false}}, "a b"),
              ElementsAre("a▁b"));
  EXPECT_THAT(words_of({{"type", "Digits"}, {"individual_digits", true}}, "a12"), ElementsAre("a", "1", "2"));
  EXPECT_THAT(words_of({{"type", "Digits"}, {"individual_digits", false}}, "a12²b"), ElementsAre("a", "12²", "b"));
  EXPECT_THAT(words_of({{"type", "Whitespace"}}, "foo_1, \u3000bar!?"), ElementsAre("foo_1", ",", "bar", "!?"));
  EXPECT_THAT(words_of({{"type", "BertPreTokenizer"}}, "it's $5"), ElementsAre("it", "'", "s", "$", "5"));
  EXPECT_THAT(words_of({{"type", "FixedLength"}, {"length", 2}}, "äöü"), ElementsAre("äö", "ü"));
  EXPECT_THAT(words_of({{"type", "CharDelimiterSplit"}, {"delimiter", "|"}}, "a||b"), ElementsAre("a", "b"));
}

// Ruby and PCRE2 read these differently; the pieces are the reference's.
TEST(RegexSyntax, ReadsRubyAsRubyDoes) {
  EXPECT_THAT(words_of(split(R"([\p{L}&&[^\p{Han}]]+|[\p{Han}]+)"), "ab日本c"), ElementsAre("ab", "日本", "c"));
  EXPECT_THAT(words_of(split(R"([a[bc]]+)"), "xabcx"), ElementsAre("x", "abc", "x"));
  EXPECT_THAT(words_of(split(R"(\p{N}{1,3}+)"), "a12345b"), ElementsAre("a", "12345", "b"));
  EXPECT_THAT(words_of(split(R"(a{,2}b)"), "aaab"), ElementsAre("a", "aab"));
  EXPECT_THAT(words_of(split(R"(\h+)"), "xfF0 "), ElementsAre("x", "fF0", " "));
  EXPECT_THAT(words_of(split(R"(\w+)"), "e\u0301-x"), ElementsAre("e\u0301", "-", "x"));
  EXPECT_THAT(words_of(split(R"(\s)"), "a\u180eb\u0085c"), ElementsAre("a\u180eb", "\u0085", "c"));
  EXPECT_THAT(words_of(split(R"((?m:a.b))"), "xa\nby"), ElementsAre("x", "a\nb", "y"));
  EXPECT_THAT(words_of(split(R"(^b)"), "a\nb"), ElementsAre("a\n", "b"));
  EXPECT_THAT(words_of(split(R"([^\S\n]+)"), "a \n b"), ElementsAre("a", " ", "\n", " ", "b"));
}

TEST(RegexSyntax, RefusesWhatItDoesNotKnow) {
  for (const char* pattern : {"[a", "(", "a)", "\\", "(?R)", "(?C1)", "(*ACCEPT)", "\\C", "\\u12", "[[:nosuch:]]",
                              "\\p{Nonsense}", "\\p{L", "(?<=a*)b", "a{2,1}"}) {
    EXPECT_FALSE(Regex::compile(pattern, "test").ok()) << pattern;
  }
  std::string deep;
  for (int i = 0; i < 10000; ++i) deep += "[";
  EXPECT_FALSE(Regex::compile(deep, "test").ok());
  EXPECT_FALSE(Regex::compile(std::string(10000, '(') + std::string(10000, ')'), "test").ok());
  EXPECT_FALSE(Regex::compile(std::string(100000, 'a'), "test").ok());
}

TEST(Regex, GivesUpOnCatastrophicPatterns) {
  const std::string text = std::string(5000, 'a') + "b";
  EXPECT_THAT(words_of(split("(a|a|aa)+$|(a+)+c"), text), ElementsAre(text));
}

TEST(Unicode, LossyDecodingReplacesMaximalInvalidParts) {
  const std::string bad = "\uFFFD";
  EXPECT_EQ(lossy_utf8("\xE2\x28\xA1"), bad + "(" + bad);
  EXPECT_EQ(lossy_utf8("\xF0\x9F\x98"), bad);
  EXPECT_EQ(lossy_utf8("\xC0\xAF"), bad + bad);
  EXPECT_EQ(lossy_utf8("\xED\xA0\x80"), bad + bad + bad);
  EXPECT_EQ(lossy_utf8("\xF0\x9F\x98\x80"), "😀");
}

TEST(Unicode, NormalizesLongRunsOfMarksInCanonicalOrder) {
  std::string marks = "a", sorted = "a";
  for (int i = 0; i < 200000; ++i) marks += "\u0301\u0323";
  for (int i = 0; i < 200000; ++i) sorted += "\u0323";
  for (int i = 0; i < 200000; ++i) sorted += "\u0301";
  normalize_unicode(marks, NormalForm::nfd);
  EXPECT_TRUE(marks == sorted);
  std::string hangul = "\u1112\u1161\u11AB e\u0301 \uFB01";
  normalize_unicode(hangul, NormalForm::nfkc);
  EXPECT_EQ(hangul, "한 é fi");
}

}  // namespace
}  // namespace pinion
