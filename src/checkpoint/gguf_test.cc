#include "checkpoint/gguf_file.h"

#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_for_test.h"
#include "checkpoint/scratch_for_test.h"

namespace pinion {
namespace {

class Gguf : public testing::Test {
 protected:
  Result<GgufFile> open(const std::string& bytes) {
    spit(dir_ / "m.gguf", bytes);
    return GgufFile::open(dir_ / "m.gguf");
  }
  std::string error_of(const std::string& bytes) {
    const auto file = open(bytes);
    return file.ok() ? "no error" : file.error().message;
  }
  ScratchDir dir_;
};

std::string floats(std::initializer_list<float> values) {
  std::string out;
  for (const float v : values) out += GgufBytes::number(v);
  return out;
}

TEST_F(Gguf, ReadsKeysAndTensors) {
  GgufBytes b;
  b.u32("a", 7)
      .f32("b", 0.5f)
      .flag("c", true)
      .string("d", "é")
      .strings("e", {"x", ""})
      .numbers<int32_t>("f", 5, {-1, 2});
  b.tensor("t", {3, 2}, 0, floats({1, 2, 3, 4, 5, 6})).tensor("u", {32}, 8, std::string(34, 'x'));
  const auto file = open(b.bytes());
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->metadata(), Json::parse(R"({"a":7,"b":0.5,"c":true,"d":"é","e":["x",""],"f":[-1,2]})"));
  const GgufTensor& t = file->tensors().at("t");
  EXPECT_EQ(t.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(t.data.size(), 24u);
  EXPECT_EQ(file->tensors().at("u").type, GgmlType::q8_0);
  EXPECT_EQ(static_cast<char>(file->tensors().at("u").data[33]), 'x');
}

TEST_F(Gguf, EveryFileThatIsCutShortIsRefused) {
  GgufBytes b;
  b.u32("a", 7).strings("e", {"x", "yz"}).tensor("t", {4}, 0, floats({1, 2, 3, 4}));
  const std::string whole = b.bytes();
  ASSERT_TRUE(open(whole).ok());
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(open(whole.substr(0, n)).ok()) << n << " bytes";
}

TEST_F(Gguf, HostileHeadersAreErrors) {
  const auto number = [](auto v) { return GgufBytes::number(v); };
  const std::string huge = "GGUF" + number(uint32_t{3}) + number(uint64_t{1} << 60) + number(uint64_t{0});
  EXPECT_NE(error_of(huge).find("the header claims"), std::string::npos) << error_of(huge);
  EXPECT_NE(error_of("GGML").find("no GGUF"), std::string::npos);
  EXPECT_NE(error_of(GgufBytes().bytes(1)).find("version 1"), std::string::npos);
  EXPECT_NE(error_of(GgufBytes().bytes(0x03000000)).find("big-endian"), std::string::npos);
  const auto key = [&](uint32_t type, const std::string& value) {
    return error_of(GgufBytes().key("k", type, value).bytes());
  };
  EXPECT_NE(key(8, number(uint64_t{0} - 1)).find("ends within its header"), std::string::npos);
  EXPECT_NE(key(9, number(uint32_t{0}) + number(uint64_t{1} << 62)).find("has 4611686018427387904 elements"),
            std::string::npos);
  EXPECT_NE(key(9, number(uint32_t{9}) + number(uint64_t{1})).find("array of arrays"), std::string::npos);
  EXPECT_NE(key(99, "").find("no known type"), std::string::npos);
  EXPECT_NE(key(8, GgufBytes::text("\xff")).find("no UTF-8"), std::string::npos);
  EXPECT_NE(error_of(GgufBytes().u32("k", 1).u32("k", 2).bytes()).find("repeated"), std::string::npos);
  EXPECT_NE(error_of(GgufBytes().u32("general.alignment", 24).bytes()).find("power of two"), std::string::npos);

  const auto tensor = [&](const std::vector<int64_t>& dims, uint32_t type) {
    return error_of(GgufBytes().tensor("t", dims, type, std::string(64, 0)).bytes());
  };
  EXPECT_NE(tensor({-4}, 0).find("out of range"), std::string::npos);
  EXPECT_NE(tensor({int64_t{1} << 40, int64_t{1} << 40}, 0).find("out of range"), std::string::npos);
  EXPECT_NE(tensor({1, 1, 1, 1, 1}, 0).find("5 dimensions"), std::string::npos);
  EXPECT_NE(tensor({33}, 8).find("blocks of 32"), std::string::npos) << tensor({33}, 8);
  EXPECT_NE(tensor({4}, 10).find("ggml's type 10"), std::string::npos);
  EXPECT_NE(tensor({17}, 0).find("outside the file"), std::string::npos);
  EXPECT_NE(error_of(GgufBytes().tensor("t", {1}, 0, "1234").tensor("t", {1}, 0, "1234").bytes()).find("twice"),
            std::string::npos);
}

GgufBytes tiny_llama() {
  GgufBytes b;
  b.string("general.architecture", "llama").u32("llama.embedding_length", 4).u32("llama.block_count", 1);
  b.u32("llama.feed_forward_length", 8).u32("llama.attention.head_count", 1).u32("llama.context_length", 64);
  b.f32("llama.rope.freq_base", 5e5f).u32("tokenizer.ggml.eos_token_id", 1);
  b.tensor("token_embd.weight", {4, 3}, 0, floats({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
  return b;
}

TEST_F(Gguf, AModelHasHuggingFacesNamesAndRowsInHalves) {
  GgufBytes b = tiny_llama();
  std::string q;
  for (int row = 0; row < 4; ++row) q += floats({row * 10.0f, 0, 0, 0});
  b.tensor("blk.0.attn_q.weight", {4, 4}, 0, q);
  spit(dir_ / "m.gguf", b.bytes());
  const auto c = Checkpoint::open_gguf(dir_ / "m.gguf");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->config()["architectures"][0], "LlamaForCausalLM");
  EXPECT_EQ(c->config()["vocab_size"], 3);
  EXPECT_EQ(c->config()["rope_theta"], 5e5);
  EXPECT_EQ(c->config()["tie_word_embeddings"], true);
  EXPECT_EQ(c->config()["eos_token_id"], Json::array({1}));
  EXPECT_EQ(c->names(),
            (std::vector<std::string>{"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"}));
  const auto t = c->tensor("model.layers.0.self_attn.q_proj.weight");
  ASSERT_TRUE(t.ok());
  // The file's rows 0 … 3 are the model's 0, 2, 1, 3: pairs of a half's and the other half's row.
  for (const auto& [row, first] : {std::pair{0, 0.0f}, {1, 20.0f}, {2, 10.0f}, {3, 30.0f}}) {
    float v;
    std::memcpy(&v, t->data.data() + row * 16, 4);
    EXPECT_EQ(v, first) << row;
  }
}

TEST_F(Gguf, WhatAModelDoesNotSupportIsNamed) {
  const auto error = [&](const GgufBytes& b) {
    spit(dir_ / "m.gguf", b.bytes());
    const auto c = Checkpoint::open_gguf(dir_ / "m.gguf");
    return c.ok() ? std::string("no error") : c.error().message;
  };
  EXPECT_NE(error(GgufBytes().string("general.architecture", "mamba")).find("\"mamba\""), std::string::npos);
  EXPECT_NE(error(tiny_llama().u32("llama.expert_count", 8)).find("experts are not supported"), std::string::npos);
  EXPECT_NE(error(tiny_llama().tensor("blk.0.odd.weight", {1}, 0, "1234")).find("blk.0.odd.weight"), std::string::npos);
  EXPECT_NE(error(tiny_llama().string("llama.rope.scaling.type", "su")).find("\"su\""), std::string::npos);
  EXPECT_NE(error(tiny_llama().u32("llama.rope.dimension_count", 2)).find("part of each head"), std::string::npos);
  EXPECT_NE(error(tiny_llama().tensor("blk.0.attn_k.weight", {4, 3}, 0, std::string(48, 0))).find("no whole heads"),
            std::string::npos);
}

}  // namespace
}  // namespace pinion
