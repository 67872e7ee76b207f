// Slices of every rank, written to disk, opened again and put together by what their config.json says, are the
// checkpoint bit for bit.
#include "cli/shard_checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "checkpoint/scratch_for_test.h"
#include "checkpoint/writer.h"

namespace pinion::cli {
namespace {

Json small_config(int kv_heads, bool tied, const char* architecture = "LlamaForCausalLM") {
  return {{"architectures", {architecture}},
          {"model_type", "llama"},
          {"vocab_size", 97},
          {"hidden_size", 32},
          {"intermediate_size", 48},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 8},
          {"head_dim", 4},
          {"num_key_value_heads", kv_heads},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"tie_word_embeddings", tied},
          {"attention_bias", true},
          {"torch_dtype", "bfloat16"},
          {"hidden_act", "silu"},
          {"rope_theta", 10000.0}};
}

Status write_plan(const std::filesystem::path& dir, const Checkpoint& from, const RankPlan& plan, int tp, int pp,
                  DType dtype) {
  std::vector<TensorToWrite> tensors;
  for (const TensorSlice& t : plan.tensors) {
    PINION_TRY(TensorToWrite w, slice_tensor(from, t, dtype));
    tensors.push_back(std::move(w));
  }
  Json config = from.config();
  config["pinion"] = rank_json(plan, tp, pp);
  return write_hf_checkpoint(dir, config, tensors);
}

struct Whole {
  std::vector<std::byte> bytes;
  std::vector<bool> covered;
};

// Puts `rank` into `out`, checking that what two ranks both hold is the same.
void add_rank(const std::filesystem::path& dir, const Checkpoint& original, std::map<std::string, Whole>& out) {
  const auto rank = Checkpoint::open(dir);
  ASSERT_TRUE(rank.ok()) << rank.error().message;
  const Json slices = rank->config()["pinion"]["slices"];
  for (const std::string& name : rank->names()) {
    const TensorRef whole = *original.tensor(name), piece = *rank->tensor(name);
    ASSERT_EQ(whole.dtype, piece.dtype);
    int axis = 0;
    int64_t begin = 0, end = whole.shape[0];
    if (const auto s = slices.find(name); s != slices.end()) {
      axis = (*s)[0], begin = (*s)[1], end = (*s)[2];
      ASSERT_EQ((*s)[3].get<int64_t>(), whole.shape[axis]) << name;
    }
    int64_t before = 1, after = 1;  // the dimensions on both sides of the axis, taken together
    for (int i = 0; i < axis; ++i) before *= whole.shape[i];
    for (int i = axis + 1; i < whole.shape.rank(); ++i) after *= whole.shape[i];
    ASSERT_EQ(piece.shape.elements(), before * (end - begin) * after) << name;
    Whole& w = out[name];
    w.bytes.resize(whole.data.size());
    w.covered.resize(whole.shape.elements());
    const size_t size = byte_size(whole.dtype);
    const std::byte* from = piece.data.data();
    for (int64_t m = 0; m < before; ++m) {
      for (int64_t i = (m * whole.shape[axis] + begin) * after, n = (end - begin) * after; n > 0;
           ++i, --n, from += size) {
        std::byte* to = w.bytes.data() + i * size;
        if (w.covered[i]) {
          ASSERT_EQ(std::memcmp(from, to, size), 0) << name << " differs between ranks";
        }
        std::memcpy(to, from, size);
        w.covered[i] = true;
      }
    }
  }
}

void round_trip(const Json& config, int tp, int pp) {
  SCOPED_TRACE(config.dump() + " tp " + std::to_string(tp) + " pp " + std::to_string(pp));
  ScratchDir scratch;
  spit(scratch / "config.json", config.dump());
  const auto dummy = Checkpoint::dummy(scratch / "config.json");
  ASSERT_TRUE(dummy.ok()) << dummy.error().message;
  const auto model = build_model(config, "config.json");
  ASSERT_TRUE(model.ok()) << model.error().message;
  const auto whole = plan_ranks(*model, 1, 1);
  ASSERT_TRUE(whole.ok());
  ASSERT_TRUE(write_plan(scratch / "whole", *dummy, (*whole)[0], 1, 1, DType::bf16).ok());
  const auto original = Checkpoint::open(scratch / "whole");
  ASSERT_TRUE(original.ok()) << original.error().message;

  const auto plans = plan_ranks(*model, tp, pp);
  ASSERT_TRUE(plans.ok()) << plans.error().message;
  ASSERT_EQ(std::ssize(*plans), tp * pp);
  // From the file and from the dummy: a slice of dummy weights is the slice of the whole's.
  for (const Checkpoint* source : {&*original, &*dummy}) {
    std::map<std::string, Whole> out;
    for (size_t i = 0; i < plans->size(); ++i) {
      const auto dir = scratch / ("rank" + std::to_string(i));
      const Status status = write_plan(dir, *source, (*plans)[i], tp, pp, DType::bf16);
      ASSERT_TRUE(status.ok()) << status.error().message;
      add_rank(dir, *original, out);
    }
    ASSERT_EQ(out.size(), original->names().size());
    for (const auto& [name, w] : out) {
      const TensorRef t = *original->tensor(name);
      EXPECT_EQ(std::ranges::count(w.covered, false), 0) << name;
      EXPECT_EQ(std::memcmp(w.bytes.data(), t.data.data(), t.data.size()), 0) << name;
    }
  }
}

TEST(ShardCheckpoint, RanksPutTogetherAreTheCheckpoint) {
  for (const auto& [tp, pp] : {std::pair{1, 1}, {2, 1}, {4, 1}, {8, 1}, {1, 3}, {2, 2}}) {
    for (const int kv_heads : {8, 2}) {
      for (const bool tied : {false, true}) round_trip(small_config(kv_heads, tied), tp, pp);
    }
  }
}

TEST(ShardCheckpoint, EveryFamilyDivides) {
  for (const ModelFamily& family : model_families()) {
    const Json config = example_config(family.architecture);
    round_trip(config, 2, 1);
    round_trip(config, 1, 2);
    const Model model = *build_model(config, "config.json");
    const auto layers = *plan_ranks(model, 1, 4), whole = *plan_ranks(model, 1, 1);
    for (const RankPlan& plan : layers) {
      EXPECT_EQ(plan.last_layer - plan.first_layer, 1);
      EXPECT_GT(plan.tensors.size(), 4) << family.architecture << " rank " << plan.pp_rank;
      EXPECT_LT(plan.tensors.size(), whole[0].tensors.size() / 2) << family.architecture;
    }
  }
}

// Puts a rank's piece of one tensor, [n], [rows, cols] or [matrices, rows, cols], where the plan says it belongs.
void place(const TensorSlice& slice, const TensorRef& piece, std::map<std::string, Whole>& out) {
  int64_t before = 1, after = 1;  // the dimensions on both sides of the axis, taken together
  const int axis = std::max(slice.axis, 0);
  for (int i = 0; i < axis; ++i) before *= slice.shape[i];
  for (int i = axis + 1; i < std::ssize(slice.shape); ++i) after *= slice.shape[i];
  const int64_t length = slice.shape[axis], begin = slice.axis < 0 ? 0 : slice.begin;
  const int64_t end = slice.axis < 0 ? length : slice.end, size = static_cast<int64_t>(byte_size(piece.dtype));
  Whole& w = out[slice.name];
  w.bytes.resize(before * length * after * size);
  w.covered.resize(before * length * after);
  ASSERT_EQ(piece.shape.elements(), before * (end - begin) * after) << slice.name;
  for (int64_t b = 0; b < before; ++b) {
    const int64_t run = (end - begin) * after, to = (b * length + begin) * after;
    std::memcpy(w.bytes.data() + to * size, piece.data.data() + b * run * size, run * size);
    std::fill_n(w.covered.begin() + to, run, true);
  }
}

// Published checkpoints fuse weights and store them transposed. What the ranks of them hold is, put together, what the
// model reads from the checkpoint itself.
TEST(ShardCheckpoint, PublishedLayoutsDivide) {
  for (const char* family : {"phi3", "glm4", "falcon_7b", "falcon_40b", "falcon_rw_alibi", "gpt2", "gpt_neox", "bloom",
                             "opt", "stablelm", "cohere", "olmo2", "qwen2_moe", "deepseek_v3"}) {
    SCOPED_TRACE(family);
    ScratchDir scratch;
    const auto original = Checkpoint::open(std::filesystem::path(PINION_GOLDEN_DIR) / "families" / family);
    ASSERT_TRUE(original.ok()) << original.error().message;
    const auto model = build_model(original->config(), "config.json");
    ASSERT_TRUE(model.ok()) << model.error().message;
    const auto plans = plan_ranks(*model, 2, 1, &*original);
    ASSERT_TRUE(plans.ok()) << plans.error().message;
    std::map<std::string, Whole> out;
    for (size_t i = 0; i < plans->size(); ++i) {
      const auto dir = scratch / ("rank" + std::to_string(i));
      const Status status = write_plan(dir, *original, (*plans)[i], 2, 1, DType::bf16);
      ASSERT_TRUE(status.ok()) << status.error().message;
      const auto rank = Checkpoint::open(dir);
      ASSERT_TRUE(rank.ok()) << rank.error().message;
      for (const TensorSlice& slice : (*plans)[i].tensors) place(slice, *rank->tensor(slice.name), out);
    }
    for (const Node& node : model->graph.nodes()) {
      for (const WeightUse& use : node.weights) {
        const WeightPart& p = use.parts[0];
        const bool vector = use.rows == 1;
        const int64_t cols = vector ? 1 : use.cols;
        const auto source = WeightSource::open(*original, p, cols, vector);
        ASSERT_TRUE(source.ok()) << source.error().message;
        const Whole& w = out[p.name];
        ASSERT_EQ(std::ssize(w.covered), p.rows * cols) << p.name;
        EXPECT_EQ(std::ranges::count(w.covered, false), 0) << p.name;
        std::vector<uint16_t> row(cols);
        for (int64_t r = 0; r < p.rows; ++r) {
          source->read(r, 0, cols, DType::bf16, reinterpret_cast<std::byte*>(row.data()));
          for (int64_t c = 0; c < cols; ++c) {
            uint16_t got = 0;
            const int64_t at = p.transposed && !vector ? c * p.rows + r : r * cols + c;
            std::memcpy(&got, w.bytes.data() + at * 2, 2);
            ASSERT_EQ(got, row[c]) << p.name << " row " << r << " column " << c;
          }
        }
      }
    }
    // With one rank the tensors keep their names, so that other programs read the result.
    const auto one = plan_ranks(*model, 1, 1, &*original);
    ASSERT_TRUE(one.ok());
    ASSERT_TRUE(write_plan(scratch / "one", *original, (*one)[0], 1, 1, DType::bf16).ok());
    const auto copy = Checkpoint::open(scratch / "one");
    ASSERT_TRUE(copy.ok());
    ASSERT_EQ(copy->names(), original->names());
    for (const std::string& name : copy->names()) {
      EXPECT_TRUE(std::ranges::equal(copy->tensor(name)->data, original->tensor(name)->data)) << name;
    }
  }
}

const TensorSlice* find(const RankPlan& plan, const std::string& name) {
  const auto it = std::ranges::find(plan.tensors, name, &TensorSlice::name);
  return it == plan.tensors.end() ? nullptr : &*it;
}

TEST(ShardCheckpoint, CutsAsTheOpsSay) {
  const Model model = *build_model(small_config(2, false), "config.json");
  const auto plans = *plan_ranks(model, 4, 1);
  const std::string layer = "model.layers.1.";
  EXPECT_EQ(find(plans[1], layer + "self_attn.q_proj.weight")->begin, 8);  // heads 2 and 3 of 8, 4 wide
  EXPECT_EQ(find(plans[1], layer + "self_attn.q_proj.bias")->begin, 8);
  EXPECT_EQ(find(plans[1], layer + "self_attn.k_proj.weight")->begin, 0);  // 2 KV heads on 4 ranks: 0 0 1 1
  EXPECT_EQ(find(plans[2], layer + "self_attn.k_proj.weight")->begin, 4);
  EXPECT_EQ(find(plans[3], layer + "self_attn.v_proj.weight")->begin, 4);
  EXPECT_EQ(find(plans[1], layer + "self_attn.o_proj.weight")->axis, 1);
  EXPECT_EQ(find(plans[1], layer + "mlp.down_proj.weight")->begin, 12);
  EXPECT_NE(find(plans[0], layer + "self_attn.o_proj.bias"), nullptr);
  EXPECT_EQ(find(plans[1], layer + "self_attn.o_proj.bias"), nullptr);
  EXPECT_EQ(find(plans[3], "model.embed_tokens.weight")->axis, -1);
  EXPECT_EQ(find(plans[3], "lm_head.weight")->end, 97);
  EXPECT_EQ(find(plans[3], "model.norm.weight")->axis, -1);
}

TEST(ShardCheckpoint, PipelineRanksHoldTheirLayers) {
  const Model model = *build_model(small_config(2, true), "config.json");
  const auto plans = *plan_ranks(model, 1, 3);
  EXPECT_NE(find(plans[0], "model.embed_tokens.weight"), nullptr);
  EXPECT_EQ(find(plans[1], "model.embed_tokens.weight"), nullptr);
  EXPECT_NE(find(plans[2], "model.embed_tokens.weight"), nullptr);  // the tied head
  EXPECT_EQ(find(plans[0], "model.norm.weight"), nullptr);
  EXPECT_NE(find(plans[2], "model.norm.weight"), nullptr);
  EXPECT_NE(find(plans[1], "model.layers.1.mlp.up_proj.weight"), nullptr);
  EXPECT_EQ(find(plans[1], "model.layers.2.mlp.up_proj.weight"), nullptr);
}

TEST(ShardCheckpoint, RefusesWhatDoesNotDivide) {
  const Model model = *build_model(small_config(2, false), "config.json");
  for (const auto& [tp, pp, flag] : {std::tuple{3, 1, "--tp_size"}, {16, 1, "--tp_size"}, {1, 4, "--pp_size"}}) {
    const auto plans = plan_ranks(model, tp, pp);
    ASSERT_FALSE(plans.ok()) << tp;
    EXPECT_NE(plans.error().message.find(flag), std::string::npos) << plans.error().message;
  }
}

TEST(ShardCheckpoint, ShapesThatDoNotFitTheConfigurationAreRefused) {
  ScratchDir scratch;
  const Json config = small_config(2, false);
  const Model model = *build_model(config, "config.json");
  spit(scratch / "config.json", config.dump());
  const auto dummy = Checkpoint::dummy(scratch / "config.json");
  ASSERT_TRUE(write_plan(scratch / "whole", *dummy, (*plan_ranks(model, 1, 1))[0], 1, 1, DType::f32).ok());
  const auto checkpoint = Checkpoint::open(scratch / "whole");
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_FALSE(slice_tensor(*checkpoint, {.name = "model.norm.weight", .shape = {31}}, DType::f32).ok());
  EXPECT_FALSE(slice_tensor(*checkpoint, {.name = "model.absent.weight", .shape = {32}}, DType::f32).ok());
}

}  // namespace
}  // namespace pinion::cli
