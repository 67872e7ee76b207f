// The demo model compiled once: it answers, and an engine that is damaged anywhere is refused with the file named; a
// build that fails leaves nothing behind.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "backend/all/backends.h"
#include "compiler/compiler.h"
#include "runtime/engine_executor.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

class DemoEngine : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir = fs::path(testing::TempDir()) / "pinion-demo-engine-test";
    fs::remove_all(dir);
    backend = find_backend("cpu");
    device = *backend->open({});
    auto checkpoint = Checkpoint::open(fs::path(PINION_SOURCE_DIR) / "demo");
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    auto report = build_engine(*checkpoint, *backend, *device, {.time_kernels = false}, dir);
    ASSERT_TRUE(report.ok()) << report.error().message;
  }
  static void TearDownTestSuite() { fs::remove_all(dir); }

  // A copy whose `file` went through `change`; opened and loaded. Empty: it loaded.
  static std::string load_changed(const std::string& file, const std::function<void(const fs::path&)>& change) {
    const fs::path copy = dir.string() + "-changed";
    fs::remove_all(copy);
    fs::copy(dir, copy, fs::copy_options::recursive);
    change(copy / file);
    std::string message;
    if (auto engine = Engine::open(copy); !engine) {
      message = engine.error().message;
    } else {
      auto executor = EngineExecutor::create(*engine, *backend, *device,
                                             {.max_batch_size = 1, .max_num_tokens = 64, .max_seq_len = 64});
      if (!executor) message = executor.error().message;
    }
    fs::remove_all(copy);
    return message;
  }

  static inline fs::path dir;
  static inline const Backend* backend = nullptr;
  static inline std::unique_ptr<Device> device;
};

TEST_F(DemoEngine, Answers) {
  auto engine = Engine::open(dir);
  ASSERT_TRUE(engine.ok()) << engine.error().message;
  auto executor = EngineExecutor::create(*engine, *backend, *device,
                                         {.max_batch_size = 1, .max_num_tokens = 128, .max_seq_len = 512});
  ASSERT_TRUE(executor.ok()) << executor.error().message;
  auto tokenizer = Tokenizer::load(dir);
  ASSERT_TRUE(tokenizer.ok());
  auto chat = ChatTemplate::load(dir);
  ASSERT_TRUE(chat.ok() && *chat);
  ChatInput input;
  input.messages = OrderedJson::array({{{"role", "user"}, {"content", "What is 27 + 48?"}}});
  auto text = (*chat)->render(input);
  ASSERT_TRUE(text.ok());
  std::vector<int32_t> ids = tokenizer->encode(*text, false), answer;
  const std::vector<int32_t> table{4, 1, 7, 2};
  int32_t past = 0;
  while (answer.size() < 24) {
    const int32_t n = static_cast<int32_t>(ids.size()) - past;
    BatchSeq s{
        .tokens = std::span(ids).subspan(past, n), .past = past, .rope_length = n, .blocks = {table}, .outputs = 1};
    const auto logits = (*executor)->forward({{s}});
    past += n;
    const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    if (std::ranges::find((*executor)->eos_token_ids(), best) != (*executor)->eos_token_ids().end()) break;
    answer.push_back(best);
    ids.push_back(best);
  }
  EXPECT_EQ(tokenizer->decode(answer, true), "27 + 48 = 75.");
}

TEST_F(DemoEngine, DamageIsNamed) {
  EXPECT_EQ(load_changed("engine.json", [](const fs::path&) {}), "");
  const auto size = fs::file_size(dir / "rank0.engine");
  for (uintmax_t cut : {uintmax_t{0}, uintmax_t{7}, uintmax_t{4095}, size / 2, size - 1}) {
    const std::string message = load_changed("rank0.engine", [&](const fs::path& f) { fs::resize_file(f, cut); });
    EXPECT_NE(message.find("rank0.engine"), std::string::npos) << cut << ": " << message;
  }
  EXPECT_NE(load_changed("rank0.engine", [](const fs::path& f) { fs::remove(f); }).find("rank0.engine"),
            std::string::npos);
  EXPECT_NE(load_changed("engine.json", [](const fs::path& f) { fs::resize_file(f, 20); }).find("engine.json"),
            std::string::npos);
  std::mt19937_64 random(11);
  for (int i = 0; i < 20; ++i) {
    // In the first pages, in the JSON sections at the end, and anywhere; padding between weights alone may change.
    const uintmax_t at = i < 5    ? random() % 4096
                         : i < 10 ? size - 1 - random() % 4096
                                  : 8192 + random() % (size - 65536);
    const std::string message = load_changed("rank0.engine", [&](const fs::path& f) {
      std::fstream file(f, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(static_cast<std::streamoff>(at));
      const char byte = static_cast<char>(file.get());
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(byte ^ (1 << (random() % 8))));
    });
    EXPECT_NE(message, "") << "byte " << at;
  }
}

TEST_F(DemoEngine, NothingIsLeftWhenABuildFails) {
  const fs::path hf = fs::path(testing::TempDir()) / "pinion-broken-hf",
                 out = fs::path(testing::TempDir()) / "pinion-broken-out";
  fs::remove_all(hf), fs::remove_all(out);
  fs::copy(fs::path(PINION_SOURCE_DIR) / "demo", hf);
  std::ifstream in(hf / "config.json");
  Json config = Json::parse(in);
  config["intermediate_size"] = 1000;  // no longer what the weights have
  std::ofstream(hf / "config.json") << config;
  auto checkpoint = Checkpoint::open(hf);
  ASSERT_TRUE(checkpoint.ok());
  auto report = build_engine(*checkpoint, *backend, *device, {.time_kernels = false}, out);
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("mlp.gate_proj.weight"), std::string::npos) << report.error().message;
  EXPECT_FALSE(fs::exists(out));
  for (const auto& entry : fs::directory_iterator(testing::TempDir())) {
    EXPECT_EQ(entry.path().filename().string().find(".pinion-broken-out"), std::string::npos);
  }
  fs::remove_all(hf);
}

TEST_F(DemoEngine, RetargetKeepsWeightsAndGraph) {
  auto engine = Engine::open(dir);
  ASSERT_TRUE(engine.ok());
  const Backend* reference = find_backend("reference");
  auto scalar = reference->open({});
  const fs::path out = dir.string() + "-reference";
  auto report = retarget(*engine, *reference, **scalar, {.time_kernels = false}, out);
  ASSERT_TRUE(report.ok()) << report.error().message;
  auto other = Engine::open(out);
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(to_text(other->graph()), to_text(engine->graph()));
  EXPECT_EQ(other->manifest().target, "reference");
  for (size_t i = 0; i < other->weights().size(); ++i) EXPECT_EQ(other->weights()[i].hash, engine->weights()[i].hash);
  for (const KernelChoice& k : other->programs()[0].steps) EXPECT_TRUE(k.kernel.starts_with("reference."));
  fs::remove_all(out);
}

TEST(Passes, EachCanBeDisabledAndUnknownOnesAreRefused) {
  auto checkpoint = Checkpoint::open(fs::path(PINION_SOURCE_DIR) / "demo");
  ASSERT_TRUE(checkpoint.ok());
  auto model = build_model(checkpoint->config(), "config.json");
  ASSERT_TRUE(model.ok());
  const size_t unfused = model->graph.nodes().size();
  for (const Pass& pass : passes()) {
    Graph all = model->graph, without = model->graph;
    ASSERT_TRUE(run_passes(all, {}, nullptr).ok());
    const std::vector<std::string> disabled{std::string(pass.name)};
    ASSERT_TRUE(run_passes(without, disabled, nullptr).ok());
    EXPECT_LT(all.nodes().size(), without.nodes().size()) << pass.name;
    EXPECT_LT(without.nodes().size(), unfused) << pass.name;
  }
  Graph g = model->graph;
  const std::vector<std::string> unknown{"no_such_pass"};
  EXPECT_FALSE(run_passes(g, unknown, nullptr).ok());
}

}  // namespace
}  // namespace pinion
