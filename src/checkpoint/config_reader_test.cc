#include "checkpoint/config_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pinion {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const Json kConfig =
    Json::parse(R"({"n": 12, "zero": 0, "minus": -1, "huge": 18446744073709551615, "x": 1e-6, "none": null,
  "yes": true, "name": "llama", "list": [1, 2], "floats": [1, 0.5], "words": ["a", "b"], "mixed": [1, "a"], "nested": {"k": "v"}})");

ConfigReader reader() {
  return ConfigReader(kConfig, "dir/config.json");
}

template <class T>
std::string message(const Result<T>& result) {
  return result.ok() ? "accepted" : result.error().message;
}

TEST(ConfigReader, ReadsValues) {
  EXPECT_EQ(*reader().require_int("n"), 12);
  EXPECT_EQ(*reader().int_or("absent", 7), 7);
  EXPECT_EQ(*reader().int_or("none", 7), 7);
  EXPECT_EQ(*reader().int_or("minus", 7, {.min = -1}), -1);
  EXPECT_EQ(*reader().find_int("none"), std::nullopt);
  EXPECT_EQ(*reader().require_float("x"), 1e-6);
  EXPECT_EQ(*reader().require_float("n"), 12.0);
  EXPECT_EQ(*reader().require_bool("yes"), true);
  EXPECT_EQ(*reader().bool_or("none", true), true);
  EXPECT_EQ(*reader().require_string("name"), "llama");
  EXPECT_EQ(*reader().string_or("absent", "d"), "d");
  EXPECT_THAT(**reader().find_ints("list"), ElementsAre(1, 2));
  EXPECT_THAT(**reader().find_floats("floats"), ElementsAre(1, 0.5));
  EXPECT_THAT(**reader().find_strings("words"), ElementsAre("a", "b"));
  EXPECT_THAT(*reader().one_or_many_ints("n"), ElementsAre(12));
  EXPECT_THAT(*reader().one_or_many_ints("list"), ElementsAre(1, 2));
  EXPECT_THAT(*reader().one_or_many_ints("none"), IsEmpty());
  EXPECT_TRUE(reader().has("n"));
  EXPECT_FALSE(reader().has("none"));
}

TEST(ConfigReader, ErrorsNameTheKeyAndTheFile) {
  for (const std::string& text : {message(reader().require_int("absent")), message(reader().require_int("none")),
                                  message(reader().require_float("absent")), message(reader().require_bool("absent")),
                                  message(reader().require_string("absent"))}) {
    EXPECT_THAT(text, AllOf(HasSubstr("is missing"), HasSubstr("dir/config.json"))) << text;
  }
  EXPECT_THAT(message(reader().require_int("minus")),
              AllOf(HasSubstr("minus must be between 0"), HasSubstr("found -1")));
  EXPECT_THAT(message(reader().require_int("zero", {.min = 1})), HasSubstr("zero must be between 1"));
  EXPECT_THAT(message(reader().find_int("huge", {.max = INT64_MAX})), HasSubstr("huge must be between"));
  for (const char* key : {"x", "yes", "name", "list", "nested"}) {
    EXPECT_THAT(message(reader().find_int(key)), HasSubstr(std::string(key) + " must be an integer"));
  }
  for (const char* key : {"yes", "name", "list", "nested"}) {
    EXPECT_THAT(message(reader().find_float(key)), HasSubstr(std::string(key) + " must be a number"));
  }
  EXPECT_THAT(message(reader().find_float("n", {.max = 1})), HasSubstr("n must be between"));
  EXPECT_THAT(message(reader().find_bool("n")), HasSubstr("true or false"));
  EXPECT_THAT(message(reader().find_string("n")), HasSubstr("must be a string"));
  EXPECT_THAT(message(reader().find_ints("mixed")), HasSubstr("mixed[1] must be an integer"));
  EXPECT_THAT(message(reader().find_strings("mixed")), HasSubstr("must be a list of strings"));
  EXPECT_THAT(message(reader().one_or_many_ints("name")), HasSubstr("must be an integer"));
  EXPECT_THAT(message(reader().find_section("n")), HasSubstr("must be an object"));
}

TEST(ConfigReader, SectionsLengthenTheKey) {
  const auto nested = reader().require_section("nested");
  ASSERT_TRUE(nested.ok());
  EXPECT_EQ(*nested->require_string("k"), "v");
  EXPECT_THAT(message(nested->require_int("k")), HasSubstr("nested.k must be an integer, found \"v\""));
  EXPECT_FALSE(reader().find_section("absent")->has_value());
}

}  // namespace
}  // namespace pinion
