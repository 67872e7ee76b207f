// One weight in the ways checkpoints hold it: alone, fused with others, transposed, stacked, under another prefix.
#include "compiler/weight_source.h"

#include <gtest/gtest.h>

#include <numeric>

#include "checkpoint/scratch_for_test.h"
#include "checkpoint/writer.h"

namespace pinion {
namespace {

struct Stored {
  std::string name;
  std::vector<int64_t> shape;  // elements count up from 0
};

class WeightSources : public testing::Test {
 protected:
  // The elements that `part` reads from a checkpoint of these tensors; an error is returned as is.
  Result<std::vector<float>> read(const std::vector<Stored>& tensors, const WeightPart& part, int64_t cols,
                                  bool vector = false) {
    std::vector<TensorToWrite> list;
    std::vector<std::vector<float>> data;
    data.reserve(tensors.size());
    for (const Stored& t : tensors) {
      int64_t n = 1;
      for (int64_t d : t.shape) n *= d;
      std::vector<float>& elements = data.emplace_back(n);
      std::iota(elements.begin(), elements.end(), 0.0f);
      list.push_back({t.name, DType::f32, t.shape, std::as_bytes(std::span(elements))});
    }
    ScratchDir scratch;
    PINION_OK(write_hf_checkpoint(scratch / "hf", Json{{"vocab_size", 1}}, list));
    PINION_TRY(const Checkpoint checkpoint, Checkpoint::open(scratch / "hf"));
    PINION_TRY(const WeightSource source, WeightSource::open(checkpoint, part, cols, vector));
    std::vector<float> out(part.rows * cols);
    for (int64_t r = 0; r < part.rows; ++r) {
      source.read(r, 0, cols, DType::f32, reinterpret_cast<std::byte*>(out.data() + r * cols));
    }
    return out;
  }
};

using Floats = std::vector<float>;

TEST_F(WeightSources, PreferTheWeightsOwnTensor) {
  const WeightPart part{.name = "q.weight", .rows = 2, .fused = {"qkv.weight", 6, 0, 1, 3}};
  EXPECT_EQ(*read({{"q.weight", {2, 2}}, {"qkv.weight", {6, 2}}}, part, 2), (Floats{0, 1, 2, 3}));
  EXPECT_EQ(*read({{"qkv.weight", {6, 2}}}, part, 2), (Floats{0, 1, 6, 7}));  // rows 0 and 3
}

TEST_F(WeightSources, GatherVectorsAsRows) {
  const WeightPart part{.name = "k.bias", .rows = 4, .fused = {"qkv.bias", 12, 2, 2, 6}};
  EXPECT_EQ(*read({{"qkv.bias", {12}}}, part, 1, true), (Floats{2, 3, 8, 9}));
}

TEST_F(WeightSources, ReadTransposedTensorsDownTheirColumns) {
  const WeightPart alone{.name = "fc.weight", .rows = 2, .fused = {}, .transposed = true};
  EXPECT_EQ(*read({{"fc.weight", {3, 2}}}, alone, 3), (Floats{0, 2, 4, 1, 3, 5}));
  const WeightPart fused{.name = "k.weight", .rows = 2, .fused = {"c_attn.weight", 6, 2, 2, 2}, .transposed = true};
  EXPECT_EQ(*read({{"c_attn.weight", {2, 6}}}, fused, 2), (Floats{2, 8, 3, 9}));
}

TEST_F(WeightSources, KnowThePublishersPrefixes) {
  const WeightPart gpt2{.name = "transformer.h.0.ln_1.weight", .rows = 3};
  const WeightPart text{.name = "model.norm.weight", .rows = 3};
  const WeightPart opt{.name = "model.decoder.final_layer_norm.weight", .rows = 3};
  for (const auto& [name, part] : {std::pair{"h.0.ln_1.weight", gpt2},
                                   {"transformer.h.0.ln_1.weight", gpt2},
                                   {"language_model.model.norm.weight", text},
                                   {"model.language_model.norm.weight", text},
                                   {"decoder.final_layer_norm.weight", opt}}) {
    const auto got = read({{name, {3}}}, part, 1, true);
    ASSERT_TRUE(got.ok()) << name << ": " << got.error().message;
    EXPECT_EQ(*got, (Floats{0, 1, 2})) << name;
  }
}

TEST_F(WeightSources, RefuseOtherShapesAndMissingTensorsByName) {
  const WeightPart part{.name = "q.weight", .rows = 2, .fused = {"qkv.weight", 6, 0, 2, 6}};
  for (const std::vector<Stored>& tensors :
       {std::vector<Stored>{{"q.weight", {3, 2}}}, {{"qkv.weight", {5, 2}}}, {{"other.weight", {2, 2}}}}) {
    const auto got = read(tensors, part, 2);
    ASSERT_FALSE(got.ok());
    EXPECT_NE(got.error().message.find(tensors[0].name == "other.weight" ? "q.weight" : tensors[0].name),
              std::string::npos)
        << got.error().message;
  }
}

}  // namespace
}  // namespace pinion
