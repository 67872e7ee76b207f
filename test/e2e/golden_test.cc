// Every golden checkpoint of the families that exist, compiled and run: logits within 2e-3 of transformers' float32,
// and greedy tokens equal; with both config files, whole and in chunks of 16, blocks of 16 and 64, alone and in a
// batch.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "backend/all/backends.h"
#include "checkpoint/safetensors.h"
#include "compiler/compiler.h"
#include "golden_file.h"
#include "runtime/engine_executor.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

const char* const kFamilies[] = {"llama2_mha",
                                 "llama3_gqa",
                                 "llama31_ropescale",
                                 "llama32_tied",
                                 "llama_bias",
                                 "llama_dynamic_ntk",
                                 "llama_linear_rope",
                                 "llama_yarn",
                                 "mistral",
                                 "mistral_swa",
                                 "qwen2",
                                 "qwen2_tied_yarn",
                                 "qwen3",
                                 "falcon_7b",
                                 "falcon_40b",
                                 "falcon_rw_alibi",
                                 "gemma",
                                 "gemma2",
                                 "gemma3_text",
                                 "phi2",
                                 "phi3",
                                 "phi3_longrope",
                                 "gpt2",
                                 "gpt_neox",
                                 "opt",
                                 "bloom",
                                 "olmo2",
                                 "granite",
                                 "starcoder2",
                                 "cohere",
                                 "stablelm",
                                 "nemotron",
                                 "smollm3",
                                 "glm4",
                                 "mixtral",
                                 "qwen2_moe",
                                 "qwen3_moe",
                                 "phimoe",
                                 "gpt_oss",
                                 "deepseek_v2",
                                 "deepseek_v3"};

struct Case {
  std::string family;
  bool legacy;
  int32_t block_size;
  std::string target;
  fs::path root = PINION_GOLDEN_DIR;
};

// A sequence and its own blocks, fed in pieces.
class Feed {
 public:
  Feed(EngineExecutor& e, std::vector<int32_t> ids, int32_t first_block, int32_t room)
      : e_(e), ids_(std::move(ids)), length_(static_cast<int32_t>(ids_.size())) {
    for (size_t g = 0; g < e.kv_groups().size(); ++g) {
      auto& t = tables_.emplace_back((room + e.block_size() - 1) / e.block_size());
      std::iota(t.begin(), t.end(), first_block + static_cast<int32_t>(g * t.size()));
    }
  }
  int32_t blocks() const { return static_cast<int32_t>(tables_.size() * tables_[0].size()); }
  int32_t left() const { return static_cast<int32_t>(ids_.size()) - past_; }
  BatchSeq take(int32_t n, bool all_outputs) {
    BatchSeq s{.tokens = std::span(ids_).subspan(past_, n),
               .past = past_,
               .rope_length = length_,
               .blocks = {},
               .outputs = all_outputs ? n : 1};
    for (const auto& t : tables_) s.blocks.emplace_back(t);
    past_ += n;
    return s;
  }
  void append(int32_t id) { ids_.push_back(id); }

 private:
  EngineExecutor& e_;
  std::vector<int32_t> ids_;
  int32_t length_, past_ = 0;
  std::vector<std::vector<int32_t>> tables_;
};

class Golden : public testing::TestWithParam<Case> {};

TEST_P(Golden, LogitsAndGreedyTokensMatch) {
  const Case& c = GetParam();
  const fs::path golden = c.root / "families" / c.family;
  const fs::path scratch = fs::path(testing::TempDir()) / ("golden-" + c.family + (c.legacy ? "-legacy" : "") +
                                                           std::to_string(c.block_size) + c.target);
  fs::remove_all(scratch);
  fs::create_directories(scratch / "hf");
  fs::copy_file(golden / (c.legacy ? "config.legacy.json" : "config.json"), scratch / "hf/config.json");
  fs::copy_file(golden / "model.safetensors", scratch / "hf/model.safetensors");

  auto checkpoint = Checkpoint::open(scratch / "hf");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  const Backend* backend = find_backend(c.target);
  ASSERT_TRUE(backend);
  auto device = backend->open({});
  ASSERT_TRUE(device.ok());
  const BuildOptions options{.dtype = DType::f32, .block_size = c.block_size, .time_kernels = false};
  auto built = build_engine(*checkpoint, *backend, **device, options, scratch / "engine");
  ASSERT_TRUE(built.ok()) << built.error().message;
  auto engine = Engine::open(scratch / "engine");
  ASSERT_TRUE(engine.ok()) << engine.error().message;
  // Rope variants by length stretch past max_position: the context already says so.
  auto opened = EngineExecutor::create(
      *engine, *backend, **device, {.num_blocks = 128, .max_batch_size = 8, .max_num_tokens = 256, .max_outputs = 256});
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EngineExecutor& e = **opened;
  auto file = SafetensorsFile::open(golden / "golden.safetensors");
  ASSERT_TRUE(file.ok());
  const int32_t vocab = e.vocab_size();

  for (const char* key : {"short", "mid", "long"}) {
    const auto ids = read<int32_t>(*file, std::string(key) + ".input_ids");
    const auto want = read<float>(*file, std::string(key) + ".logits");
    for (int32_t chunk : {1000, 16}) {
      Feed feed(e, ids, 3, static_cast<int32_t>(ids.size()));
      std::vector<float> got;
      while (feed.left() > 0) {
        const auto rows = e.forward({{feed.take(std::min(chunk, feed.left()), true)}});
        got.insert(got.end(), rows.begin(), rows.end());
      }
      ASSERT_EQ(got.size(), ids.size() * vocab);
      const size_t skip = got.size() - want.size();  // the golden holds the last positions
      float worst = 0;
      for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::abs(got[skip + i] - want[i]));
      EXPECT_LE(worst, 2e-3f) << key << " chunk " << chunk;
    }
  }

  // Greedy, in a batch of the golden sequence and seven others of mixed lengths.
  const auto prompt = read<int32_t>(*file, "mid.input_ids");
  const auto greedy = read<int32_t>(*file, "mid.greedy");
  std::vector<Feed> feeds;
  int32_t block = 0;
  for (int i = 0; i < 8; ++i) {
    std::vector<int32_t> ids(prompt.begin(), prompt.begin() + (i == 5 ? prompt.size() : 3 + 2 * i));
    feeds.emplace_back(e, ids, block, static_cast<int32_t>(prompt.size() + greedy.size()));
    block += feeds.back().blocks();
  }
  ASSERT_LE(block, e.options().num_blocks);
  const size_t checked = c.family == "llama_dynamic_ntk" ? 48 - prompt.size() : greedy.size();
  for (size_t step = 0; step < checked; ++step) {
    Batch batch;
    for (Feed& f : feeds) batch.seqs.push_back(f.take(f.left(), false));
    const auto rows = e.forward(batch);
    for (size_t i = 0; i < feeds.size(); ++i) {
      const auto row = rows.subspan(i * vocab, vocab);
      const auto best = static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
      if (i == 5) {
        ASSERT_EQ(best, greedy[step]) << "step " << step;
      }
      feeds[i].append(best);
    }
  }
  fs::remove_all(scratch);
}

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const char* f : kFamilies) {
    out.push_back({f, false, 64, "cpu"});
    out.push_back({f, true, 16, "cpu"});
    out.push_back({f, false, 16, "reference"});
  }
  // More checkpoints in the same form, as test/golden/make_families.py writes them.
  if (const char* extra = std::getenv("PINION_GOLDEN_EXTRA")) {
    for (const auto& entry : fs::directory_iterator(fs::path(extra) / "families")) {
      out.push_back({entry.path().filename(), false, 16, "cpu", extra});
      out.push_back({entry.path().filename(), false, 64, "reference", extra});
    }
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Families, Golden, testing::ValuesIn(cases()), [](const auto& info) {
  const Case& c = info.param;
  return c.family + (c.legacy ? "_legacy_" : "_") + c.target + std::to_string(c.block_size);
});

}  // namespace
}  // namespace pinion
