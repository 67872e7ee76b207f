#include "checkpoint/writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/scratch_for_test.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::vector<TensorToWrite> copy_of(const Checkpoint& checkpoint) {
  std::vector<TensorToWrite> out;
  for (const std::string& name : checkpoint.names()) {
    const TensorRef ref = *checkpoint.tensor(name);
    out.push_back({name, ref.dtype, {ref.shape.dims().begin(), ref.shape.dims().end()}, ref.data});
  }
  return out;
}

TEST(Writer, CopiesTheDemoModelIntoShards) {
  const fs::path demo = fs::path(PINION_SOURCE_DIR) / "demo";
  const auto source = Checkpoint::open(demo);
  ASSERT_TRUE(source.ok()) << source.error().message;
  ScratchDir dir;
  const fs::path out = dir / "a" / "copy";
  uint64_t last = 0, total = 0;
  HfWriteOptions options{.max_shard_bytes = 3'000'000, .copy_from = demo};
  options.progress = [&](uint64_t done, uint64_t of) {
    EXPECT_GT(done, last);
    last = done;
    total = of;
  };
  const Status status = write_hf_checkpoint(out, source->config(), copy_of(*source), options);
  ASSERT_TRUE(status.ok()) << status.error().message;
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, source->total_bytes());

  const auto copy = Checkpoint::open(out);
  ASSERT_TRUE(copy.ok()) << copy.error().message;
  EXPECT_EQ(copy->config(), source->config());
  EXPECT_EQ(copy->generation_config(), source->generation_config());
  EXPECT_EQ(copy->names(), source->names());
  for (const std::string& name : source->names()) {
    const TensorRef a = *source->tensor(name), b = *copy->tensor(name);
    EXPECT_EQ(a.shape, b.shape);
    EXPECT_TRUE(std::ranges::equal(a.data, b.data)) << name;
  }
  EXPECT_EQ(slurp(out / "tokenizer.json"), slurp(demo / "tokenizer.json"));
  EXPECT_EQ(slurp(out / "tokenizer_config.json"), slurp(demo / "tokenizer_config.json"));

  const auto index = read_json_file(out / "model.safetensors.index.json");
  ASSERT_TRUE(index.ok());
  EXPECT_EQ((*index)["metadata"]["total_size"], source->total_bytes());
  EXPECT_EQ((*index)["weight_map"].size(), source->names().size());
  size_t shards = 0;
  for (const auto& entry : fs::directory_iterator(out)) {
    if (entry.path().extension() != ".safetensors") continue;
    ++shards;
    const auto file = SafetensorsFile::open(entry.path());
    ASSERT_TRUE(file.ok());
    EXPECT_EQ(file->metadata().at("format"), "pt");
    EXPECT_TRUE(file->tensors().size() == 1 || fs::file_size(entry.path()) < 3'100'000);
  }
  EXPECT_GE(shards, 8u);
}

TEST(Writer, ASmallModelIsOneFile) {
  ScratchDir dir;
  const std::string data = "abcd";
  const std::vector<TensorToWrite> tensors{{"w", DType::u8, {4}, std::as_bytes(std::span(data))}};
  const Json config = {{"model_type", "llama"}}, generation = {{"eos_token_id", 7}};
  ASSERT_TRUE(write_hf_checkpoint(dir / "m", config, tensors, {.generation_config = &generation}).ok());
  EXPECT_TRUE(fs::exists(dir / "m" / "model.safetensors"));
  EXPECT_FALSE(fs::exists(dir / "m" / "model.safetensors.index.json"));
  const auto copy = Checkpoint::open(dir / "m");
  ASSERT_TRUE(copy.ok());
  EXPECT_EQ(copy->generation_config()["eos_token_id"], 7);
  // Twice the same command: the checkpoint is replaced, and the same input gives the same bytes.
  const std::string before = slurp(dir / "m" / "model.safetensors");
  ASSERT_TRUE(write_hf_checkpoint(dir / "m", config, tensors).ok());
  EXPECT_EQ(slurp(dir / "m" / "model.safetensors"), before);
  EXPECT_FALSE(fs::exists(dir / "m" / "generation_config.json"));
}

TEST(Writer, AFailureLeavesWhatWasThere) {
  ScratchDir dir;
  spit(dir / "m" / "config.json", "old");
  const std::vector<TensorToWrite> tensors{
      {"w", DType::u8, {4}, [](AtomicFile&) -> Status { return fail(Errc::io, "lost"); }}};
  EXPECT_THAT(write_hf_checkpoint(dir / "m", Json::object(), tensors).error().message, HasSubstr("lost"));
  EXPECT_EQ(slurp(dir / "m" / "config.json"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), {}), 1);
}

TEST(Writer, RefusesToReplaceWhatIsNoCheckpoint) {
  ScratchDir dir;
  spit(dir / "home" / "letter.txt", "dear");
  EXPECT_THAT(write_hf_checkpoint(dir / "home", Json::object(), {}).error().message, HasSubstr("other files"));
  EXPECT_EQ(slurp(dir / "home" / "letter.txt"), "dear");
  EXPECT_FALSE(write_hf_checkpoint(dir / "home" / "letter.txt", Json::object(), {}).ok());
  EXPECT_TRUE(check_output_directory(dir / "new").ok());
  fs::create_directory(dir / "empty");
  EXPECT_TRUE(check_output_directory(dir / "empty").ok());
}

TEST(Writer, RefusesATensorInTwoShards) {
  ScratchDir dir;
  const std::string data = "abcd";
  const TensorToWrite w{"w", DType::u8, {4}, std::as_bytes(std::span(data))};
  const std::vector<TensorToWrite> tensors{w, w};
  EXPECT_THAT(write_hf_checkpoint(dir / "m", Json::object(), tensors, {.max_shard_bytes = 4}).error().message,
              HasSubstr("twice"));
  EXPECT_FALSE(fs::exists(dir / "m"));
}

}  // namespace
}  // namespace pinion
