// Hidden states against the logits that the same engine gives: the head's matrix times them. And requests for
// embeddings through the engine loop, alone, in chunks, and among others that generate.
#include <gtest/gtest.h>

#include <cmath>

#include "backend/all/backends.h"
#include "compiled_model.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

class DemoEmbeddings : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    model = new CompiledModel(demo(), *find_backend("cpu"), {},
                              {.max_batch_size = 8, .max_num_tokens = 64, .max_outputs = 8, .max_seq_len = 128});
  }
  static void TearDownTestSuite() {
    delete model;
    model = nullptr;
  }
  static fs::path demo() { return fs::path(PINION_SOURCE_DIR) / "demo"; }

  static std::vector<int32_t> prompt(int32_t length, int32_t seed) {
    std::vector<int32_t> out;
    for (int32_t i = 0; i < length; ++i) out.push_back(100 + (i * 37 + seed * 11) % 400);
    return out;
  }
  static Request request(std::vector<int32_t> tokens, Pooling pooling) {
    Request out;
    out.prompt = std::move(tokens);
    out.pooling = pooling;
    out.sampling.temperature = 0;
    out.sampling.max_tokens = pooling == Pooling::none ? 12 : 1;
    out.sampling.ignore_eos = true;
    return out;
  }
  // By one forward, without the loop: the rows of hidden states of the whole prompt.
  static std::vector<float> rows(const std::vector<int32_t>& tokens, std::vector<float>* logits = nullptr) {
    EngineExecutor& e = model->executor();
    std::vector<int32_t> blocks;
    for (int32_t i = 0; i < 4; ++i) blocks.push_back(i);
    Batch batch;
    BatchSeq& seq = batch.seqs.emplace_back();
    seq.tokens = tokens;
    seq.rope_length = static_cast<int32_t>(tokens.size());
    seq.blocks.assign(e.kv_groups().size(), blocks);
    seq.outputs = static_cast<int32_t>(tokens.size());
    batch.hidden = true;
    batch.logits = logits != nullptr;
    const auto got = e.forward(batch);
    if (logits) logits->assign(got.begin(), got.end());
    EXPECT_EQ(got.empty(), logits == nullptr);
    return {e.hidden().begin(), e.hidden().end()};
  }
  static CompiledModel* model;
};
CompiledModel* DemoEmbeddings::model = nullptr;

void expect_near(std::span<const float> got, std::span<const float> wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], wanted[i], 2e-3 * (1 + std::abs(wanted[i]))) << i;
}

TEST_F(DemoEmbeddings, TheHeadTimesThemAreTheLogits) {
  std::vector<float> logits;
  const auto tokens = prompt(5, 1);
  const auto hidden = rows(tokens, &logits);
  const auto width = static_cast<size_t>(model->executor().hidden_size());
  const auto vocab = static_cast<size_t>(model->executor().vocab_size());
  ASSERT_EQ(hidden.size(), tokens.size() * width);
  ASSERT_EQ(logits.size(), tokens.size() * vocab);
  const auto checkpoint = Checkpoint::open(demo());
  ASSERT_TRUE(checkpoint.ok());
  const auto head =
      checkpoint->tensor(checkpoint->contains("lm_head.weight") ? "lm_head.weight" : "model.embed_tokens.weight");
  ASSERT_TRUE(head.ok());
  ASSERT_EQ(head->shape[0], static_cast<int64_t>(vocab));
  for (size_t r = 0; r < tokens.size(); ++r) {
    for (size_t v = 0; v < vocab; v += 97) {
      double sum = 0;
      for (size_t i = 0; i < width; ++i) {
        sum += double{hidden[r * width + i]} *
               load_f32(head->data.data(), head->dtype, static_cast<int64_t>(v * width + i));
      }
      ASSERT_NEAR(logits[r * vocab + v], sum, 2e-3 * (1 + std::abs(sum))) << "row " << r << ", token " << v;
    }
  }
  expect_near(rows(tokens), hidden);  // without running the head
}

TEST_F(DemoEmbeddings, PooledOverChunksAndAmongOthers) {
  const auto tokens = prompt(8, 2);
  const auto hidden = rows(tokens);
  const auto width = static_cast<size_t>(model->executor().hidden_size());
  std::vector<float> mean(width), last(hidden.end() - static_cast<std::ptrdiff_t>(width), hidden.end());
  for (size_t i = 0; i < hidden.size(); ++i) mean[i % width] += hidden[i] / static_cast<float>(tokens.size());

  EngineLoop loop(model->executor(), nullptr, {.max_batch_size = 8, .max_num_tokens = 64, .chunk_tokens = 3});
  const auto alone = ask(loop, {request(prompt(9, 3), Pooling::none)});
  const auto got = ask(loop, {request(tokens, Pooling::mean), request(prompt(9, 3), Pooling::none),
                              request(tokens, Pooling::last), request({tokens[0]}, Pooling::mean)});
  expect_near(got[0].embedding, mean);
  expect_near(got[2].embedding, last);
  EXPECT_EQ(got[1].tokens, alone[0].tokens);
  EXPECT_EQ(got[3].embedding.size(), width);
  EXPECT_TRUE(got[0].tokens.empty());
  EXPECT_EQ(got[0].finish, FinishReason::stop);
}

}  // namespace
}  // namespace pinion
