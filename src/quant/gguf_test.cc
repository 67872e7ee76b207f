// GGUF's blocks against what gguf-py makes of them, and its tokenizers against the ones they were made from.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <sstream>

#include "checkpoint/gguf_for_test.h"
#include "quant/packed.h"
#include "quant/quantized_checkpoint.h"
#include "text/tokenizer.h"

namespace pinion {
namespace {
namespace fs = std::filesystem;

std::string from_hex(const std::string& hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return out;
}

fs::path scratch(const std::string& name) {
  return fs::path(testing::TempDir()) / (std::to_string(::getpid()) + name);
}

TEST(GgufBlocks, DecodeToTheBitsOfTheReference) {
  std::ifstream in(fs::path(PINION_SOURCE_DIR) / "test/golden/quantized/gguf/blocks.txt");
  std::string type, block, values;
  int seen = 0;
  while (in >> type >> block >> values) {
    SCOPED_TRACE(type);
    const std::string bytes = from_hex(block), want = from_hex(values);
    const uint32_t id = type == "Q4_0" ? 2 : type == "Q8_0" ? 8 : type == "Q4_K" ? 12 : type == "Q5_K" ? 13 : 14;
    const auto elements = static_cast<int64_t>(want.size() / 4);
    GgufBytes b;
    b.string("general.architecture", "qwen2").u32("qwen2.embedding_length", static_cast<uint32_t>(elements));
    b.u32("qwen2.block_count", 1).u32("qwen2.feed_forward_length", 8).u32("qwen2.attention.head_count", 1);
    b.u32("qwen2.context_length", 64).tensor("token_embd.weight", {elements, 2}, id, bytes + bytes);
    const fs::path file = scratch("blocks.gguf");
    std::ofstream(file, std::ios::binary) << b.bytes();
    const auto checkpoint = Checkpoint::open_gguf(file);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    const auto quantized = QuantizedCheckpoint::open(*checkpoint);
    ASSERT_TRUE(quantized.ok());
    const auto m = quantized->read("model.embed_tokens");
    ASSERT_TRUE(m.ok()) << m.error().message;
    ASSERT_TRUE(m->has_value());
    const std::vector<float> got = decode(**m);
    ASSERT_EQ(got.size() * 4, 2 * want.size());
    for (int row = 0; row < 2; ++row) {
      EXPECT_EQ(std::memcmp(got.data() + row * elements, want.data(), want.size()), 0) << "row " << row;
    }
    const PackedPlan plan = plan_packed(**m);
    ASSERT_EQ(plan.why_not, "");
    std::vector<float> packed(got.size());
    decode_packed(plan.layout, pack(**m), 0, 2, packed);
    EXPECT_EQ(packed, got);
    EXPECT_EQ(plan.layout.code_bits(), id == 2 || id == 12 ? 4 : 8);
    fs::remove(file);
    ++seen;
  }
  EXPECT_EQ(seen, 5);
}

// A scale that is NaN or infinite is named; a negative one is meant.
TEST(GgufBlocks, BadScalesAreNamed) {
  for (const auto& [half, message] : {std::pair{0x7e00, "the scale 0 is nan (model.embed_tokens"},
                                      {0x7c00, "the scale 0 is inf (model.embed_tokens"},
                                      {0xbc00, "read"}}) {
    GgufBytes b;
    b.string("general.architecture", "qwen2").u32("qwen2.embedding_length", 32).u32("qwen2.block_count", 1);
    b.u32("qwen2.feed_forward_length", 8).u32("qwen2.attention.head_count", 1).u32("qwen2.context_length", 64);
    b.tensor("token_embd.weight", {32, 1}, 8, GgufBytes::number(static_cast<uint16_t>(half)) + std::string(32, 5));
    const fs::path file = scratch("scales.gguf");
    std::ofstream(file, std::ios::binary) << b.bytes();
    const auto checkpoint = Checkpoint::open_gguf(file);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    const auto m = QuantizedCheckpoint::open(*checkpoint)->read("model.embed_tokens");
    const std::string got = m ? "read" : m.error().message;
    EXPECT_NE(got.find(message), std::string::npos) << got;
    fs::remove(file);
  }
}

Result<Tokenizer> tokenizer_of(const GgufBytes& b) {
  const fs::path file = scratch("tokenizer.gguf"), dir = scratch("tokenizer");
  std::ofstream(file, std::ios::binary) << b.bytes();
  PINION_TRY(const GgufFile gguf, GgufFile::open(file));
  fs::remove(file);
  PINION_TRY(const auto files, gguf_tokenizer(gguf.metadata(), "test"));
  fs::create_directories(dir);
  for (const auto& [name, text] : files) std::ofstream(dir / name, std::ios::binary) << text;
  auto tokenizer = Tokenizer::load(dir);
  fs::remove_all(dir);
  return tokenizer;
}

// The golden tokenizers' vocabularies, written as llama.cpp's converter writes them.
TEST(GgufTokenizer, ByteLevelBpeGivesTheSameTokens) {
  for (const auto& [name, pre] : {std::pair{"llama3", "llama-bpe"}, {"qwen2", "qwen2"}, {"gpt2", "gpt-2"}}) {
    SCOPED_TRACE(name);
    const fs::path dir = fs::path(PINION_GOLDEN_DIR) / "tokenizers" / name;
    const Json json = *read_json_file(dir / "tokenizer.json");
    size_t size = json["model"]["vocab"].size();
    for (const Json& a : json["added_tokens"]) size = std::max(size, a["id"].get<size_t>() + 1);
    std::vector<std::string> tokens(size), merges;
    std::vector<int32_t> types(size, 1);
    for (const auto& [token, id] : json["model"]["vocab"].items()) tokens[id] = token;
    for (const Json& a : json["added_tokens"]) {
      tokens[a["id"]] = a["content"];
      types[a["id"]] = a["special"].get<bool>() ? 3 : 4;
    }
    for (const Json& m : json["model"]["merges"]) {
      merges.push_back(m.is_string() ? m.get<std::string>() : m[0].get<std::string>() + " " + m[1].get<std::string>());
    }
    GgufBytes b;
    b.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", pre).strings("tokenizer.ggml.tokens", tokens);
    b.numbers("tokenizer.ggml.token_type", 5, types).strings("tokenizer.ggml.merges", merges);
    const auto got = tokenizer_of(b);
    ASSERT_TRUE(got.ok()) << got.error().message;
    const auto want = Tokenizer::load(dir);
    ASSERT_TRUE(want.ok());
    for (const std::string text :
         {"Hello, world! It's 2024: 1234567 tokens.", "  naïve café\n\n\tλ → 漢字 🙂", "", "a  b   c "}) {
      const auto ids = got->encode(text, false);
      EXPECT_EQ(ids, want->encode(text, false)) << text;
      EXPECT_EQ(got->decode(ids), want->decode(ids)) << text;
    }
  }
}

// SentencePiece joins by score: "ab" before "bc", whatever stands first.
TEST(GgufTokenizer, SentencePieceJoinsByScore) {
  std::vector<std::string> tokens{"<unk>", "<s>", "</s>"};
  std::vector<float> scores(3, 0);
  std::vector<int32_t> types{2, 3, 3};
  for (int i = 0; i < 256; ++i) {
    constexpr char kHex[] = "0123456789ABCDEF";
    tokens.push_back(std::string("<0x") + kHex[i / 16] + kHex[i % 16] + ">");
    scores.push_back(0), types.push_back(6);
  }
  const auto add = [&](const std::string& piece, float score) {
    tokens.push_back(piece), scores.push_back(score), types.push_back(1);
    return static_cast<int32_t>(tokens.size() - 1);
  };
  const int32_t space = add("▁", -10), a = add("a", -11), b = add("b", -12), c = add("c", -13);
  const int32_t bc = add("bc", -2), ab = add("ab", -1), space_ab = add("▁ab", -3);
  GgufBytes file;
  file.string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", tokens);
  file.numbers("tokenizer.ggml.scores", 6, scores).numbers("tokenizer.ggml.token_type", 5, types);
  file.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
  const auto t = tokenizer_of(file);
  ASSERT_TRUE(t.ok()) << t.error().message;
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(t->encode("abc"), (Ids{1, space_ab, c}));
  EXPECT_EQ(t->encode("cbc"), (Ids{1, space, c, bc}));
  EXPECT_EQ(t->encode("a b", false), (Ids{space, a, space, b}));
  EXPECT_EQ(t->encode("é", false), (Ids{space, 3 + 0xc3, 3 + 0xa9}));
  EXPECT_EQ(t->decode(Ids{1, space_ab, c}, true), "abc");
  (void)ab;
}

TEST(GgufTokenizer, OtherKindsAreNamed) {
  GgufBytes b;
  b.string("tokenizer.ggml.model", "t5");
  const auto t = tokenizer_of(b);
  ASSERT_FALSE(t.ok());
  EXPECT_NE(t.error().message.find("\"t5\""), std::string::npos) << t.error().message;
  b = GgufBytes();
  b.string("tokenizer.ggml.model", "gpt2")
      .string("tokenizer.ggml.pre", "viking")
      .strings("tokenizer.ggml.tokens", {"a"});
  const auto p = tokenizer_of(b);
  ASSERT_FALSE(p.ok());
  EXPECT_NE(p.error().message.find("\"viking\""), std::string::npos) << p.error().message;
}

}  // namespace
}  // namespace pinion
