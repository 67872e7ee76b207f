#include "checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>

#include "checkpoint/hf_cache.h"
#include "checkpoint/scratch_for_test.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// A safetensors file with U8 tensors of one byte each.
std::string bytes_file(const std::vector<std::pair<std::string, char>>& tensors) {
  std::string header = "{", data;
  for (const auto& [name, value] : tensors) {
    header += "\"" + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + 1) + "]},";
    data += value;
  }
  if (header.back() == ',') header.pop_back();
  return safetensors_bytes(header + "}", data);
}

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override { spit(dir_ / "config.json", R"({"model_type":"llama"})"); }
  void write_index(std::string_view weight_map) {
    spit(dir_ / "model.safetensors.index.json",
         R"({"metadata":{"total_size":1.0e10},"weight_map":)" + std::string(weight_map) + "}");
  }
  void write_two_shards() {
    spit(dir_ / "model-00001-of-00002.safetensors", bytes_file({{"a", 'A'}, {"b", 'B'}, {"unlisted", 'U'}}));
    spit(dir_ / "model-00002-of-00002.safetensors", bytes_file({{"c", 'C'}, {"b", 'X'}}));
    write_index(
        R"({"a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors"})");
  }
  std::string error() {
    const auto opened = Checkpoint::open(dir_.path());
    return opened.ok() ? "accepted" : opened.error().message;
  }
  ScratchDir dir_;
};

char value(const Checkpoint& checkpoint, std::string_view name) {
  const auto tensor = checkpoint.tensor(name);
  return tensor.ok() ? static_cast<char>(tensor->data[0]) : '?';
}

TEST_F(CheckpointTest, OpensASingleFile) {
  spit(dir_ / "model.safetensors", bytes_file({{"a", 'A'}, {"b", 'B'}}));
  spit(dir_ / "generation_config.json", R"({"eos_token_id":[1,2]})");
  auto opened = Checkpoint::open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const Checkpoint checkpoint = *std::move(opened);  // references survive the move
  EXPECT_EQ(checkpoint.config()["model_type"], "llama");
  EXPECT_EQ(checkpoint.generation_config()["eos_token_id"][1], 2);
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "b"));
  EXPECT_TRUE(checkpoint.contains("a"));
  EXPECT_FALSE(checkpoint.contains("c"));
  EXPECT_FALSE(checkpoint.is_dummy());
  EXPECT_EQ(checkpoint.total_bytes(), 2u);
  const auto b = checkpoint.tensor("b");
  ASSERT_TRUE(b.ok());
  EXPECT_EQ(b->name, "b");
  EXPECT_EQ(b->dtype, DType::u8);
  EXPECT_EQ(b->shape, Shape({1}));
  EXPECT_EQ(static_cast<char>(b->data[0]), 'B');
}

TEST_F(CheckpointTest, AMissingTensorIsNamedWithItsNeighbour) {
  spit(dir_ / "model.safetensors", bytes_file({{"layers.0.q_proj.qweight", 'A'}, {"norm.weight", 'B'}}));
  const auto opened = Checkpoint::open(dir_.path());
  ASSERT_TRUE(opened.ok());
  EXPECT_TRUE(opened->generation_config().is_null());
  const auto missing = opened->tensor("layers.0.q_proj.weight");
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.error().message,
              AllOf(HasSubstr("layers.0.q_proj.weight"), HasSubstr("layers.0.q_proj.qweight")));
}

TEST_F(CheckpointTest, FollowsTheIndex) {
  write_two_shards();
  auto opened = Checkpoint::open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const Checkpoint checkpoint = *std::move(opened);
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "b", "c"));
  EXPECT_EQ(value(checkpoint, "a"), 'A');
  EXPECT_EQ(value(checkpoint, "b"), 'B');  // the index decides between two shards that hold it
  EXPECT_EQ(value(checkpoint, "c"), 'C');
  EXPECT_FALSE(checkpoint.contains("unlisted"));
}

TEST_F(CheckpointTest, TransformersWeightsNamesTheFile) {
  spit(dir_ / "model.safetensors", bytes_file({{"a", 'A'}}));
  spit(dir_ / "other.safetensors", bytes_file({{"a", 'O'}}));
  spit(dir_ / "config.json", R"({"transformers_weights":"other.safetensors"})");
  const auto opened = Checkpoint::open(dir_.path());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EXPECT_EQ(value(*opened, "a"), 'O');
  for (const char* bad :
       {"\"../x.safetensors\"", "\"/etc/x.safetensors\"", "7", "\"pytorch_model.bin\"", "\"gone.safetensors\""}) {
    spit(dir_ / "config.json", std::string("{\"transformers_weights\":") + bad + "}");
    EXPECT_NE(error(), "accepted") << bad;
  }
}

TEST_F(CheckpointTest, AMissingShardIsNamedWithTheRemedy) {
  write_two_shards();
  fs::remove(dir_ / "model-00002-of-00002.safetensors");
  EXPECT_THAT(error(),
              AllOf(HasSubstr("model-00002-of-00002.safetensors"), HasSubstr("is missing"), HasSubstr("fetch")));
  fs::remove(dir_ / "model-00001-of-00002.safetensors");
  EXPECT_THAT(error(), HasSubstr("2 of 2 shards are missing"));
}

TEST_F(CheckpointTest, ATensorInTheWrongShardIsAnError) {
  write_two_shards();
  write_index(R"({"a":"model-00002-of-00002.safetensors"})");
  EXPECT_THAT(error(), AllOf(HasSubstr("\"a\""), HasSubstr("model-00002-of-00002.safetensors")));
}

TEST_F(CheckpointTest, RefusesHostileIndexes) {
  write_two_shards();
  const auto outside = dir_.path().parent_path() / (dir_.path().filename().string() + "-outside.safetensors");
  spit(outside, bytes_file({{"a", 'A'}}));
  const std::vector<std::string> names{"../" + outside.filename().string(),
                                       outside.string(),
                                       "a/../../x.safetensors",
                                       "..\\\\x.safetensors",
                                       "%2e%2e/x.safetensors",
                                       "",
                                       ".",
                                       "x/",
                                       "//x.safetensors",
                                       "./model-00001-of-00002.safetensors",
                                       "x\\u0000.safetensors",
                                       "x\\n.safetensors",
                                       std::string(4096, 'n') + ".safetensors",
                                       "model.bin",
                                       "config.json"};
  for (const std::string& name : names) {
    write_index("{\"a\":\"" + name + "\"}");
    EXPECT_NE(error(), "accepted") << name;
    EXPECT_EQ(error().find('\n'), std::string::npos) << name;
  }
  fs::remove(outside);
  for (const char* map : {"[]", "null", "7", R"({"a":7})", R"({"a":null})", R"({"a":["x"]})", R"({"a":"x","a":"y"})"}) {
    write_index(map);
    EXPECT_NE(error(), "accepted") << map;
  }
  spit(dir_ / "model.safetensors.index.json", "{}");
  EXPECT_THAT(error(), HasSubstr("weight_map"));
  spit(dir_ / "model.safetensors.index.json", "[]");
  EXPECT_NE(error(), "accepted");
  spit(dir_ / "model.safetensors.index.json", std::string(100'000, '{'));
  EXPECT_NE(error(), "accepted");
}

TEST_F(CheckpointTest, RefusesLinksOutAndSpecialFiles) {
  ScratchDir elsewhere;
  spit(elsewhere / "model.safetensors", bytes_file({{"a", 'A'}}));
  fs::create_symlink(elsewhere / "model.safetensors", dir_ / "model.safetensors");
  EXPECT_THAT(error(), HasSubstr("leads out of the model's directory"));
  ::setenv("PINION_FOLLOW_LINKS", "1", 1);
  EXPECT_EQ(error(), "accepted");
  ::unsetenv("PINION_FOLLOW_LINKS");

  const auto replace_by = [&](const fs::path& target) {
    fs::remove(dir_ / "model.safetensors");
    fs::create_symlink(target, dir_ / "model.safetensors");
  };
  for (const char* target : {"/dev/zero", "/proc/self/mem", "model.safetensors", "gone", "."}) {
    replace_by(target);
    EXPECT_NE(error(), "accepted") << target;
  }
  fs::remove(dir_ / "model.safetensors");
  ASSERT_EQ(::mkfifo((dir_ / "model.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(error(), HasSubstr("not a regular file"));  // and does not wait for a writer
  fs::remove(dir_ / "model.safetensors");
  spit(dir_ / "sub" / "s.safetensors", bytes_file({{"a", 'A'}}));  // a link that stays inside is fine
  fs::create_symlink("sub/s.safetensors", dir_ / "model.safetensors");
  EXPECT_EQ(error(), "accepted");
}

TEST_F(CheckpointTest, SaysWhatIsMissingOrForeign) {
  EXPECT_THAT(error(), AllOf(HasSubstr("no weights"), HasSubstr("model.safetensors")));
  spit(dir_ / "pytorch_model.bin", "x");
  EXPECT_THAT(error(),
              AllOf(HasSubstr("only safetensors"), HasSubstr("pytorch_model.bin"), HasSubstr("save_pretrained")));
  fs::remove(dir_ / "pytorch_model.bin");
  spit(dir_ / "adapter_model.safetensors", "x");
  EXPECT_THAT(error(), HasSubstr("adapter"));
  fs::remove(dir_ / "config.json");
  EXPECT_THAT(error(), HasSubstr("config.json is missing"));
  EXPECT_THAT(Checkpoint::open(dir_ / "absent").error().message, HasSubstr("no such directory"));
}

TEST_F(CheckpointTest, RefusesHostileConfigs) {
  spit(dir_ / "model.safetensors", bytes_file({{"a", 'A'}}));
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{"), std::string("NaN"), std::string("{\"a\":NaN}"),
        std::string("{\"a\":Infinity}"), std::string("{\"a\":1e400}"), std::string(R"({"a":1,"a":2})"),
        std::string(100'000, '['), "{\"a\":\"" + std::string(17 << 20, 'x') + "\"}"}) {
    spit(dir_ / "config.json", text);
    EXPECT_THAT(error(), HasSubstr("config.json")) << text.substr(0, 40);
  }
}

TEST_F(CheckpointTest, MoreThanEightDimensionsAreRefusedByName) {
  spit(dir_ / "model.safetensors",
       safetensors_bytes(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", "x"));
  const auto opened = Checkpoint::open(dir_.path());
  ASSERT_TRUE(opened.ok());
  EXPECT_EQ(opened->tensor("a").error().code, Errc::unsupported);
}

TEST_F(CheckpointTest, DummyNeedsOnlyTheConfig) {
  for (const fs::path& path : {dir_.path(), dir_ / "config.json"}) {
    const auto dummy = Checkpoint::dummy(path);
    ASSERT_TRUE(dummy.ok()) << dummy.error().message;
    EXPECT_TRUE(dummy->is_dummy());
    EXPECT_EQ(dummy->config()["model_type"], "llama");
    EXPECT_FALSE(dummy->contains("a"));
    EXPECT_FALSE(dummy->tensor("a").ok());
    EXPECT_EQ(dummy->dir(), dir_.path());
  }
  EXPECT_FALSE(Checkpoint::dummy(dir_ / "absent.json").ok());
  EXPECT_FALSE(Checkpoint::dummy("/dev/zero").ok());
}

TEST(CheckpointGolden, OpensTheDemoModelAndEveryFamily) {
  const auto demo = Checkpoint::open(fs::path(PINION_SOURCE_DIR) / "demo");
  ASSERT_TRUE(demo.ok()) << demo.error().message;
  EXPECT_GT(demo->names().size(), 50u);
  int families = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(PINION_GOLDEN_DIR) / "families")) {
    if (!entry.is_directory()) continue;
    const auto opened = Checkpoint::open(entry.path());
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    for (const std::string& name : opened->names()) ASSERT_TRUE(opened->tensor(name).ok()) << name;
    ++families;
  }
  EXPECT_GE(families, 40);
}

class HubCache : public testing::Test {
 protected:
  void SetUp() override {
    ::setenv("HF_HUB_CACHE", cache_.path().c_str(), 1);
    spit(root_ / "refs" / "main", kCommit);
    spit(root_ / "refs" / "pr" / "1", std::string(kCommit) + "\n");
    spit(root_ / "blobs" / "aaa", R"({"model_type":"llama"})");
    spit(root_ / "blobs" / "bbb", bytes_file({{"a", 'A'}}));
    fs::create_directories(snapshot_);
    fs::create_symlink("../../blobs/aaa", snapshot_ / "config.json");
    fs::create_symlink("../../blobs/bbb", snapshot_ / "model.safetensors");
  }
  void TearDown() override { ::unsetenv("HF_HUB_CACHE"); }

  static constexpr const char* kCommit = "0123456789abcdef0123456789abcdef01234567";
  ScratchDir cache_;
  fs::path root_ = cache_ / "models--org--name", snapshot_ = root_ / "snapshots" / kCommit;
};

TEST_F(HubCache, ResolvesNamesAndRevisions) {
  for (const std::string& model :
       {std::string("org/name"), std::string("org/name@main"), std::string("org/name@refs/main"),
        std::string("org/name@pr/1"), "org/name@" + std::string(kCommit)}) {
    const auto path = resolve_model(model);
    if (model == "org/name@refs/main") {
      EXPECT_FALSE(path.ok());
      continue;
    }
    ASSERT_TRUE(path.ok()) << model << ": " << path.error().message;
    EXPECT_EQ(*path, snapshot_);
    const auto opened = Checkpoint::open(*path);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    EXPECT_EQ(value(*opened, "a"), 'A');
  }
  EXPECT_EQ(*resolve_model(cache_.path().string()), cache_.path());
}

TEST_F(HubCache, AbsentModelsComeWithTheCommand) {
  EXPECT_THAT(resolve_model("org/other").error().message, HasSubstr("hf download org/other"));
  EXPECT_THAT(resolve_model("org/name@v2").error().message, HasSubstr("hf download org/name --revision v2"));
  EXPECT_EQ(resolve_model("org/other").error().code, Errc::not_found);
  for (const char* bad :
       {"", "/no/such/dir", "a/b/c", "../x", "org/name@../../x", "org/..", "org/na me", "org/name@", "a\nb"}) {
    const auto path = resolve_model(bad);
    ASSERT_FALSE(path.ok()) << bad;
    EXPECT_EQ(path.error().message.find("hf download"), std::string::npos) << bad;
  }
  spit(cache_ / "file", "x");
  EXPECT_THAT(resolve_model((cache_ / "file").string()).error().message, HasSubstr("not a directory"));
}

TEST_F(HubCache, AHostileRefLeadsNowhere) {
  spit(root_ / "refs" / "main", "../../..");
  EXPECT_FALSE(resolve_model("org/name").ok());
}

TEST_F(HubCache, LinksMayLeadToItsOwnBlobsOnly) {
  fs::remove(snapshot_ / "model.safetensors");
  fs::create_symlink("../../../models--org--other/blobs/bbb", snapshot_ / "model.safetensors");
  spit(cache_ / "models--org--other" / "blobs" / "bbb", bytes_file({{"a", 'A'}}));
  EXPECT_THAT(Checkpoint::open(snapshot_).error().message, HasSubstr("leads out"));
}

TEST_F(HubCache, AnIncompleteSnapshotComesWithTheCommand) {
  fs::remove(root_ / "blobs" / "bbb");
  EXPECT_THAT(
      Checkpoint::open(snapshot_).error().message,
      AllOf(HasSubstr("model.safetensors"), HasSubstr("hf download org/name --revision " + std::string(kCommit))));
  fs::remove(snapshot_ / "model.safetensors");
  EXPECT_THAT(Checkpoint::open(snapshot_).error().message, HasSubstr("hf download org/name"));
}

TEST(HubCachePlace, FollowsTheEnvironment) {
  const std::vector<const char*> names{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"};
  std::vector<std::string> saved;
  for (const char* name : names) saved.push_back(std::getenv(name) ? std::getenv(name) : "");
  for (const char* name : names) ::unsetenv(name);
  ::setenv("HOME", "/h", 1);
  EXPECT_EQ(hf_hub_cache(), "/h/.cache/huggingface/hub");
  ::setenv("XDG_CACHE_HOME", "/x", 1);
  EXPECT_EQ(hf_hub_cache(), "/x/huggingface/hub");
  ::setenv("HF_HOME", "/f", 1);
  EXPECT_EQ(hf_hub_cache(), "/f/hub");
  ::setenv("HF_HUB_CACHE", "/c", 1);
  EXPECT_EQ(hf_hub_cache(), "/c");
  for (size_t i = 0; i < names.size(); ++i) {
    saved[i].empty() ? ::unsetenv(names[i]) : ::setenv(names[i], saved[i].c_str(), 1);
  }
}

}  // namespace
}  // namespace pinion
