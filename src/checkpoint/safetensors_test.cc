#include "checkpoint/safetensors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <numeric>

#include "checkpoint/safetensors_header.h"
#include "checkpoint/scratch_for_test.h"

namespace pinion {
namespace {

using testing::HasSubstr;

std::string entry(std::string_view name, std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape, offsets);
}

class Safetensors : public testing::Test {
 protected:
  Result<SafetensorsFile> open(std::string_view bytes) {
    spit(dir_ / "x.safetensors", bytes);
    return SafetensorsFile::open(dir_ / "x.safetensors");
  }
  Result<SafetensorsFile> open_header(std::string_view header, size_t data_bytes = 0) {
    return open(safetensors_bytes(header, std::string(data_bytes, 'd')));
  }
  void expect_refused(std::string_view header, size_t data_bytes, const std::string& reason) {
    const auto file = open_header(header, data_bytes);
    ASSERT_FALSE(file.ok()) << header.substr(0, 200);
    EXPECT_EQ(file.error().code, Errc::corrupt);
    EXPECT_THAT(file.error().message, HasSubstr(reason)) << header.substr(0, 200);
    EXPECT_THAT(file.error().message, HasSubstr("x.safetensors"));
  }
  ScratchDir dir_;
};

TEST_F(Safetensors, ReadsTensorsInAnyOrder) {
  const auto file = open(safetensors_bytes(
      R"( {"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7],"later":{"x":[1]}},"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"F16","shape":[0,5],"data_offsets":[4,4]}} )",
      "0123xyz"));
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->metadata(), (SafetensorsMetadata{{"format", "pt"}}));
  const TensorInfo& b = file->tensors().at("b");
  EXPECT_EQ(b, (TensorInfo{DType::u8, {3}, 4, 7}));
  EXPECT_EQ(static_cast<char>(file->data(b)[2]), 'z');
  EXPECT_EQ(file->data(file->tensors().at("a")).size(), 4u);
  EXPECT_TRUE(file->data(file->tensors().at("e")).empty());
}

TEST_F(Safetensors, AcceptsWhatIsLegal) {
  for (const std::string& header : {std::string("{}"), std::string("{}      "), std::string("\n\t {} "),
                                    std::string(R"({"__metadata__":null})"), std::string(R"({"__metadata__":{}})"),
                                    std::string("{") + entry("x", "I64", "[0,9223372036854775807]", "[0,0]") + "}"}) {
    EXPECT_TRUE(open_header(header).ok()) << header;
  }
  // Empty tensors share an offset with their neighbour.
  const std::string shared = std::string("{") + entry("a", "F32", "[4]", "[0,16]") + "," +
                             entry("b", "F32", "[0]", "[16,16]") + "," + entry("c", "F32", "[0,7]", "[0,0]") + "}";
  EXPECT_TRUE(open_header(shared, 16).ok());
  const auto fp4 = open_header(std::string("{") + entry("x", "F4", "[3,2]", "[0,3]") + "}", 3);
  EXPECT_TRUE(fp4.ok());
}

TEST_F(Safetensors, RefusesBadLengths) {
  for (size_t size = 0; size < 8; ++size) {
    const auto file = open(std::string(size, '\0'));
    ASSERT_FALSE(file.ok());
    EXPECT_THAT(file.error().message, HasSubstr("header too small"));
  }
  const auto with_length = [&](uint64_t n) {
    std::string bytes = safetensors_bytes("{}");
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(n >> (8 * i));
    const auto file = open(bytes);
    return file.ok() ? "accepted" : file.error().message;
  };
  EXPECT_THAT(with_length(3), HasSubstr("invalid header length"));
  EXPECT_THAT(with_length(1000), HasSubstr("invalid header length"));
  EXPECT_THAT(with_length(100'000'000), HasSubstr("invalid header length"));
  EXPECT_THAT(with_length(100'000'001), HasSubstr("header too large"));
  EXPECT_THAT(with_length(uint64_t{1} << 63), HasSubstr("header too large"));
  EXPECT_THAT(with_length(UINT64_MAX), HasSubstr("header too large"));
  EXPECT_THAT(with_length(UINT64_MAX - 7), HasSubstr("header too large"));  // 8 + N would wrap to 0
  EXPECT_THAT(with_length(0), HasSubstr("invalid header"));
  EXPECT_THAT(with_length(1), HasSubstr("invalid header"));
  EXPECT_EQ(with_length(2), "accepted");
}

TEST_F(Safetensors, RefusesWhatIsNoJsonObject) {
  for (std::string_view header :
       {"", " ", "[]", "1", "\"x\"", "null", "{", "}", "{}x", "{} {}", "{\"a\":", "\xEF\xBB\xBF{}", "{\"\xff\":{}}",
        "{\"a\xc0\xaf\":{}}", "{'a':1}", "{}//", "{\"__metadata__\":{}", "NaN"}) {
    expect_refused(header, 0, "invalid header");
  }
  expect_refused(std::string_view("{}\0garbage", 10), 0, "NUL");
  expect_refused(std::string_view("\0{}", 3), 0, "invalid header");
  expect_refused(std::string(200'000, '[') + std::string(200'000, ']'), 0, "invalid header");
  std::string deep = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":)";
  deep += std::string(100'000, '[') + std::string(100'000, ']') + "}}";
  expect_refused(deep, 1, "nested deeper");
  expect_refused(R"({"__metadata__":{"a":1}})", 0, "must be a string");
  expect_refused(R"({"__metadata__":{"a":null}})", 0, "must be a string");
  expect_refused(R"({"__metadata__":{"a":{"b":"c"}}})", 0, "must be a string");
  expect_refused(R"({"__metadata__":[]})", 0, "__metadata__");
  expect_refused(R"({"__metadata__":"x"})", 0, "__metadata__");
}

TEST_F(Safetensors, RefusesBadEntries) {
  for (std::string_view value : {"1", "null", "[]", "\"x\"", "true"}) {
    expect_refused(fmt::format(R"({{"a":{}}})", value), 0, "expected an object");
  }
  expect_refused(R"({"a":{}})", 0, "dtype is missing");
  expect_refused(R"({"a":{"dtype":"U8","shape":[1]}})", 1, "data_offsets is missing");
  expect_refused(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "shape is missing");
  expect_refused(std::string("{") + entry("a", "f32", "[1]", "[0,4]") + "}", 4, "unknown dtype");
  expect_refused(std::string("{") + entry("a", "F33", "[1]", "[0,4]") + "}", 4, "unknown dtype");
  expect_refused(R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,1]}})", 1, "dtype must be a string");
  for (std::string_view shape :
       {"[-1]", "[1.0]", "[1e3]", "[\"1\"]", "[[1]]", "[null]", "1", "null", "{}", "[18446744073709551616]"}) {
    expect_refused(std::string("{") + entry("a", "U8", shape, "[0,1]") + "}", 1, "tensor \"a\": shape must be");
  }
  for (std::string_view offsets : {"[0]", "[]", "[0,1,2]", "[-1,1]", "[0,1.0]", "[0,1e0]", "[0,18446744073709551616]",
                                   "null", "{}", "[[0,1]]", "[\"0\",1]", "1"}) {
    expect_refused(std::string("{") + entry("a", "U8", "[1]", offsets) + "}", 1, "data_offsets");
  }
  // Escaped in the message: a name cannot write to the log as it likes.
  const auto file = open_header(std::string("{") + entry("a\\n\\u001b[2J", "X", "[1]", "[0,1]") + "}", 1);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().message.find('\n'), std::string::npos);
  EXPECT_EQ(file.error().message.find('\x1b'), std::string::npos);
}

TEST_F(Safetensors, RefusesDuplicates) {
  const std::string a = entry("a", "U8", "[1]", "[0,1]"), b = entry("a", "U8", "[1]", "[1,2]");
  expect_refused("{" + a + "," + b + "}", 2, "appears twice");
  expect_refused(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1, "appears twice");
  expect_refused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1,"x":2}})", 1, "appears twice");
  expect_refused(R"({"__metadata__":{"a":"b","a":"c"}})", 0, "appears twice");
  expect_refused(R"({"__metadata__":{},"__metadata__":{}})", 0, "appears twice");
}

TEST_F(Safetensors, RefusesLayoutsThatDoNotCoverTheFileOnce) {
  const auto pair = [](std::string_view first, std::string_view second) {
    return std::string("{") + entry("a", "U8", "[4]", first) + "," + entry("b", "U8", "[4]", second) + "}";
  };
  ASSERT_TRUE(open_header(pair("[0,4]", "[4,8]"), 8).ok());
  ASSERT_TRUE(open_header(pair("[4,8]", "[0,4]"), 8).ok());
  expect_refused(pair("[0,4]", "[0,4]"), 4, "invalid offset");
  expect_refused(pair("[0,4]", "[3,7]"), 7, "invalid offset");
  expect_refused(pair("[0,4]", "[5,9]"), 9, "invalid offset");
  expect_refused(pair("[1,5]", "[5,9]"), 9, "invalid offset");
  expect_refused(pair("[0,4]", "[4,3]"), 8, "invalid offset");
  expect_refused(pair("[0,4]", "[4,18446744073709551615]"), 8, "its data_offsets");
  expect_refused(pair("[0,4]", "[4,8]"), 9, "not fully covered");
  expect_refused("{}", 1, "not fully covered");
  const std::string whole = safetensors_bytes(pair("[0,4]", "[4,8]"), "abcdefgh");
  for (size_t size = 0; size < whole.size(); ++size) EXPECT_FALSE(open(whole.substr(0, size)).ok()) << size;
}

TEST_F(Safetensors, RefusesShapesThatOverflowOrDisagree) {
  const auto one = [](std::string_view dtype, std::string_view shape, std::string_view offsets) {
    return std::string("{") + entry("a", dtype, shape, offsets) + "}";
  };
  expect_refused(one("F32", "[4]", "[0,15]"), 15, "take 16 bytes");
  expect_refused(one("F32", "[0]", "[0,4]"), 4, "take 0 bytes");
  expect_refused(one("U8", "[1099511627776,1099511627776]", "[0,0]"), 0, "overflow");
  expect_refused(one("U8", "[4294967296,4294967296]", "[0,0]"), 0, "overflow");
  expect_refused(one("F64", "[2305843009213693952]", "[0,0]"), 0, "overflow");
  expect_refused(one("U8", "[9223372036854775808,2]", "[0,0]"), 0, "overflow");
  expect_refused(one("U8", "[0,18446744073709551615]", "[0,0]"), 0, "overflow");
  expect_refused(one("F4", "[3]", "[0,1]"), 1, "no whole number of bytes");
  expect_refused(one("F6_E2M3", "[2]", "[0,1]"), 1, "no whole number of bytes");
  std::string dims = "[1";
  for (int i = 0; i < 999; ++i) dims += ",1";
  expect_refused(one("U8", dims + "]", "[0,1]"), 1, "more than 16 dimensions");
}

TEST_F(Safetensors, RefusesNamesNobodyNeeds) {
  expect_refused(std::string("{") + entry(std::string(4097, 'n'), "U8", "[1]", "[0,1]") + "}", 1, "name of 4097 bytes");
  expect_refused(std::string("{") + entry("a\\u0000b", "U8", "[1]", "[0,1]") + "}", 1, "NUL");
}

TEST_F(Safetensors, ManyTensorsAtOnePlaceAreRefusedQuickly) {
  std::string header = "{";
  for (int i = 0; i < 100'000; ++i) header += entry(std::to_string(i), "U8", "[1]", "[0,1]") + ",";
  header.back() = '}';
  expect_refused(header, 1, "invalid offset");
}

TEST_F(Safetensors, RefusesWhatIsNoRegularFile) {
  EXPECT_EQ(SafetensorsFile::open(dir_ / "absent").error().code, Errc::not_found);
  EXPECT_FALSE(SafetensorsFile::open(dir_.path()).ok());
  EXPECT_FALSE(SafetensorsFile::open("/dev/zero").ok());
}

TensorToWrite tensor(std::string name, DType dtype, std::vector<int64_t> shape, std::string_view bytes) {
  return {std::move(name), dtype, std::move(shape), std::as_bytes(std::span(bytes))};
}

TEST_F(Safetensors, WritesTheCanonicalBytes) {
  const auto path = dir_ / "w.safetensors";
  ASSERT_TRUE(write_safetensors(path, {}).ok());
  EXPECT_EQ(slurp(path), safetensors_bytes("{}      "));
  ASSERT_TRUE(write_safetensors(path, {}, {{"framework", "pt"}}).ok());
  EXPECT_EQ(slurp(path), safetensors_bytes(R"({"__metadata__":{"framework":"pt"}}     )"));

  const std::vector<TensorToWrite> tensors{tensor("z.bool", DType::boolean, {1}, "\1"),
                                           tensor("b", DType::f16, {2}, "bbbb"), tensor("a", DType::f16, {2}, "aaaa"),
                                           tensor("w", DType::i32, {}, "wwww"), tensor("u", DType::u8, {0}, "")};
  ASSERT_TRUE(write_safetensors(path, tensors).ok());
  std::string header = std::string("{") + entry("w", "I32", "[]", "[0,4]") + "," + entry("a", "F16", "[2]", "[4,8]") +
                       "," + entry("b", "F16", "[2]", "[8,12]") + "," + entry("u", "U8", "[0]", "[12,12]") + "," +
                       entry("z.bool", "BOOL", "[1]", "[12,13]") + "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  EXPECT_EQ(slurp(path), safetensors_bytes(header, "wwwwaaaabbbb\1"));
  EXPECT_TRUE(SafetensorsFile::open(path).ok());
}

TEST_F(Safetensors, StreamsAndChecksWhatAProducerWrites) {
  const auto path = dir_ / "w.safetensors";
  std::vector<TensorToWrite> tensors{{"a", DType::u8, {300}, [](AtomicFile& file) -> Status {
                                        for (int i = 0; i < 3; ++i) PINION_OK(file.write(std::string(100, 'a' + i)));
                                        return {};
                                      }}};
  ASSERT_TRUE(write_safetensors(path, tensors).ok());
  const auto file = SafetensorsFile::open(path);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(static_cast<char>(file->data(file->tensors().at("a"))[299]), 'c');

  const std::string before = slurp(path);
  tensors[0].shape = {301};
  EXPECT_FALSE(write_safetensors(path, tensors).ok());
  tensors[0].data = [](AtomicFile&) -> Status { return fail(Errc::io, "lost"); };
  EXPECT_THAT(write_safetensors(path, tensors).error().message, HasSubstr("lost"));
  EXPECT_EQ(slurp(path), before);  // a failed write leaves the old file, and no other
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_.path()), {}), 1);
}

TEST_F(Safetensors, RefusesToWriteWhatItWouldNotRead) {
  const auto path = dir_ / "w.safetensors";
  const auto refused = [&](std::vector<TensorToWrite> tensors, SafetensorsMetadata metadata = {}) {
    return !write_safetensors(path, tensors, metadata).ok() && !std::filesystem::exists(path);
  };
  EXPECT_TRUE(refused({tensor("a", DType::u8, {1}, "a"), tensor("a", DType::u8, {1}, "a")}));
  EXPECT_TRUE(refused({tensor("a", DType::u8, {1}, "a"), tensor("a", DType::f16, {1}, "aa")}));
  EXPECT_TRUE(refused({tensor("a", DType::u8, {2}, "a")}));
  EXPECT_TRUE(refused({tensor("a", DType::u8, {-1}, "a")}));
  EXPECT_TRUE(refused({tensor("a", DType::f4, {1}, "a")}));
  EXPECT_TRUE(refused({tensor("a", DType::u8, {int64_t{1} << 40, int64_t{1} << 40}, "a")}));
  EXPECT_TRUE(refused({tensor("__metadata__", DType::u8, {1}, "a")}));
  EXPECT_TRUE(refused({tensor("a\xff", DType::u8, {1}, "a")}));
  EXPECT_TRUE(refused({}, {{"k", "\xff"}}));
}

// Files that the reference library wrote come back byte for byte.
TEST_F(Safetensors, RewritesReferenceFilesByteForByte) {
  int files = 0;
  const auto families = std::filesystem::path(PINION_GOLDEN_DIR) / "families";
  ASSERT_TRUE(std::filesystem::exists(families));
  for (const auto& found : std::filesystem::recursive_directory_iterator(families)) {
    if (found.path().extension() != ".safetensors") continue;
    const auto file = SafetensorsFile::open(found.path());
    ASSERT_TRUE(file.ok()) << file.error().message;
    std::vector<TensorToWrite> tensors;
    for (const auto& [name, info] : file->tensors())
      tensors.push_back({name, info.dtype, info.shape, file->data(info)});
    const auto copy = dir_ / "copy.safetensors";
    ASSERT_TRUE(write_safetensors(copy, tensors, file->metadata()).ok());
    EXPECT_TRUE(slurp(copy) == slurp(found.path())) << found.path();
    ++files;
  }
  EXPECT_GE(files, 40);
}

// Every bit of the header matters: a flipped one is refused or reads as a file that still covers its data exactly.
TEST_F(Safetensors, SurvivesBitFlips) {
  const std::string header =
      std::string("{") + entry("a", "F32", "[2,2]", "[0,16]") + "," + entry("b", "BF16", "[3]", "[16,22]") + "}";
  const std::string good = safetensors_bytes(header, std::string(22, 'd'));
  for (size_t bit = 0; bit < (8 + header.size()) * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    const auto file = open(bad);
    if (!file.ok()) continue;
    uint64_t bytes = 0;
    for (const auto& [name, info] : file->tensors()) bytes += file->data(info).size();
    EXPECT_EQ(bytes, 22u);
  }
}

}  // namespace
}  // namespace pinion
