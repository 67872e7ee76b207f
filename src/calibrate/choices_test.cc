#include "calibrate/choices.h"

#include <gtest/gtest.h>

#include "checkpoint/scratch_for_test.h"

namespace pinion {
namespace {

// Thinks `favourite` the most likely next token, always.
class Opinion : public Executor {
 public:
  Opinion(int32_t vocab, int32_t favourite) : row_(vocab, 0) {
    row_[favourite] = 1;
    options_ = {.num_blocks = 64, .max_batch_size = 1, .max_num_tokens = 7, .max_outputs = 7, .max_seq_len = 512};
  }
  int32_t vocab_size() const override { return static_cast<int32_t>(row_.size()); }
  int32_t context_length() const override { return 512; }
  int32_t block_size() const override { return 16; }
  std::span<const KvGroupInfo> kv_groups() const override { return groups_; }
  const ExecutorOptions& options() const override { return options_; }
  std::span<const int32_t> eos_token_ids() const override { return {}; }
  uint64_t rope_variant(int32_t) const override { return 0; }
  std::span<const float> forward(const Batch& batch) override {
    out_.clear();
    for (size_t i = 0; i < batch.seqs.at(0).tokens.size(); ++i) out_.insert(out_.end(), row_.begin(), row_.end());
    return out_;
  }
  void copy_block(int32_t, int32_t) override {}

 private:
  std::vector<float> row_, out_;
  std::vector<KvGroupInfo> groups_{KvGroupInfo{}};
  ExecutorOptions options_;
};

const std::filesystem::path kTokenizer = std::filesystem::path(PINION_GOLDEN_DIR) / "tokenizers" / "gpt2";

TEST(Choices, CountsWhatTheModelPrefers) {
  const ScratchDir dir;
  const Tokenizer tokenizer = *Tokenizer::load(kTokenizer);
  spit(dir / "q.jsonl", R"({"question": "Which?", "choices": ["x", "y", "z", "w"], "answer": 1, "subject": "one"})"
                        "\n\n"
                        R"({"question": "And now?", "choices": ["x", "y"], "answer": "B", "subject": "one"})"
                        "\n"
                        R"({"question": "Last?", "choices": ["x", "y"], "answer": "0", "subject": "two"})"
                        "\n");
  const auto questions = read_choices(dir / "q.jsonl", tokenizer, 0);
  ASSERT_TRUE(questions.ok()) << questions.error().message;
  ASSERT_EQ(questions->size(), 3u);
  EXPECT_EQ(tokenizer.decode((*questions)[1].prompt), "And now?\nA. x\nB. y\nAnswer:");
  EXPECT_EQ((*questions)[0].letters.size(), 4u);
  EXPECT_EQ((*questions)[2].answer, 0);

  const int32_t b = tokenizer.encode(" B", false).back();
  Opinion model(tokenizer.vocab_size(), b);
  const auto scores = answer_choices(model, *questions);
  ASSERT_TRUE(scores.ok()) << scores.error().message;
  EXPECT_EQ(scores->all.questions, 3);
  EXPECT_EQ(scores->all.right, 2);
  EXPECT_EQ(scores->subjects.at("one").accuracy(), 1);
  EXPECT_EQ(scores->subjects.at("two").accuracy(), 0);
  EXPECT_EQ(read_choices(dir / "q.jsonl", tokenizer, 2)->size(), 2u);
}

TEST(Choices, ABadLineIsNamed) {
  const ScratchDir dir;
  const Tokenizer tokenizer = *Tokenizer::load(kTokenizer);
  for (const char* line :
       {"{\"question\": \"a\"}", "[1]", "{\"question\": \"a\", \"choices\": [\"x\"], \"answer\": 0}",
        "{\"question\": \"a\", \"choices\": [\"x\", \"y\"], \"answer\": 2}",
        "{\"question\": \"a\", \"choices\": [\"x\", \"y\"], \"answer\": \"C\"}",
        "{\"question\": \"a\", \"choices\": [\"x\", 3], \"answer\": 0}", "{\"question\": \"a\", \"choi"}) {
    spit(dir / "q.jsonl", std::string("\n") + line + "\n");
    const auto questions = read_choices(dir / "q.jsonl", tokenizer, 0);
    ASSERT_FALSE(questions.ok()) << line;
    EXPECT_NE(questions.error().message.find("q.jsonl, line 2"), std::string::npos) << questions.error().message;
  }
}

}  // namespace
}  // namespace pinion
