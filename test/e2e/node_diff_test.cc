// `pinion diff` finds what it is for: a fault planted in the kernel of any one node is named at that node, or at the
// first value behind it that both graphs have; so is a damaged weight. Without a fault nothing is named.
#include "cli/node_diff.h"

#include <gtest/gtest.h>

#include <set>

#include "backend/all/backends.h"
#include "checkpoint/safetensors.h"
#include "compiled_model.h"
#include "planted_backend.h"

namespace pinion::cli {
namespace {

namespace fs = std::filesystem;

// The planted kernel: the real one, whose call number `at` comes out wrong.
struct Fault {
  const Kernel* real = nullptr;
  int at = -1, calls = 0;
} fault;

void faulty(const LaunchArgs& args, Stream& stream) {
  fault.real->launch(args, stream);
  if (fault.calls++ != fault.at) return;
  float* y = args.out[0].as<float>();
  for (int64_t i = 0; i < args.out[0].shape.elements(); ++i) y[i] = 1.5f * y[i] + 0.25f;
}

const fs::path golden = fs::path(PINION_GOLDEN_DIR) / "families";
const ExecutorOptions limits{.max_batch_size = 1, .max_num_tokens = 64, .max_outputs = 64};
const std::vector<int32_t> ids{5, 17, 100, 3, 44, 44, 9, 12, 150, 7, 23, 61};

CompiledModel reference(const std::string& family) {
  return {golden / family, *find_backend("reference"), {.dtype = DType::f32, .disabled_passes = {"all"}}, limits};
}

// The scopes that may be named for a fault in node `from`: of the first node that it reaches and both graphs know.
std::string expected_scope(const Graph& g, const Graph& unfused, size_t from) {
  std::set<int32_t> wrong{g.nodes()[from].out[0].id}, known;
  for (const Node& n : unfused.nodes())
    for (const Value v : n.out) known.insert(v.id);
  for (size_t i = from; i < g.nodes().size(); ++i) {
    const Node& n = g.nodes()[i];
    const bool reached = i == from || std::ranges::any_of(n.in, [&](Value v) { return wrong.contains(v.id); });
    if (!reached) continue;
    for (const Value v : n.out) {
      if (i != from) wrong.insert(v.id);
      if (wrong.contains(v.id) && known.contains(v.id)) return n.scope;
    }
  }
  return "no node";
}

TEST(NodeDiff, NamesTheNodeOfAPlantedFault) {
  const Backend& cpu = *find_backend("cpu");
  const CompiledModel slow = reference("qwen3");
  const CompiledModel whole(golden / "qwen3", cpu, {.dtype = DType::f32}, limits);
  const auto clean = diff_nodes(whole.engine(), whole.executor(), slow.engine(), slow.executor(), ids);
  ASSERT_TRUE(clean.ok()) << clean.error().message;
  EXPECT_GT(clean->compared, 10);
  EXPECT_LT(clean->logits.rms, 1e-4);

  const Graph& g = whole.engine().graph();
  const Program* program = nullptr;
  for (const Program& p : whole.engine().programs()) {
    if (!program && std::ssize(ids) <= p.tokens) program = &p;
  }
  ASSERT_TRUE(program);
  std::map<std::string, int> calls;  // of each kernel, up to the node
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const std::string& name = program->steps[i].kernel;
    Kernel kernel = *find_kernel(cpu, name);
    fault = {.real = find_kernel(cpu, name), .at = calls[name]++};
    kernel.launch = faulty;
    PlantedBackend planted(cpu);
    planted.plant(kernel);
    const CompiledModel broken(golden / "qwen3", planted, {.dtype = DType::f32}, limits);
    const auto diff = diff_nodes(broken.engine(), broken.executor(), slow.engine(), slow.executor(), ids);
    ASSERT_GT(fault.calls, fault.at) << name << " was not launched";
    ASSERT_FALSE(diff.ok()) << "the fault at " << g.nodes()[i].scope << " was not seen";
    const std::string want = " diverges at " + expected_scope(g, slow.engine().graph(), i) + ": ";
    EXPECT_NE(diff.error().message.find(want), std::string::npos)
        << "fault in " << to_text(g.nodes()[i].op) << " at " << g.nodes()[i].scope << ": " << diff.error().message;
  }
}

TEST(NodeDiff, NamesTheNodeOfADamagedWeight) {
  const fs::path copy = fs::temp_directory_path() / ("pinion-damaged-" + std::to_string(::getpid()));
  fs::remove_all(copy);
  fs::create_directory(copy);
  fs::copy_file(golden / "llama3_gqa/config.json", copy / "config.json");
  const auto file = SafetensorsFile::open(golden / "llama3_gqa/model.safetensors");
  ASSERT_TRUE(file.ok());
  std::vector<std::byte> damaged;
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, info] : file->tensors()) {
    auto bytes = file->data(info);
    if (name == "model.layers.1.mlp.down_proj.weight") {
      damaged.assign(bytes.begin(), bytes.end());
      std::ranges::rotate(damaged, damaged.begin() + static_cast<int64_t>(byte_size(info.dtype)));  // off by one
      bytes = damaged;
    }
    tensors.push_back({.name = name, .dtype = info.dtype, .shape = info.shape, .data = bytes});
  }
  ASSERT_EQ(damaged.empty(), false);
  ASSERT_TRUE(write_safetensors(copy / "model.safetensors", tensors).ok());
  const CompiledModel slow = reference("llama3_gqa");
  const CompiledModel broken(copy, *find_backend("cpu"), {.dtype = DType::f32}, limits);
  fs::remove_all(copy);
  const auto diff = diff_nodes(broken.engine(), broken.executor(), slow.engine(), slow.executor(), ids);
  ASSERT_FALSE(diff.ok());
  EXPECT_NE(diff.error().message.find("diverges at model.layers.1.mlp.down_proj"), std::string::npos)
      << diff.error().message;
}

}  // namespace
}  // namespace pinion::cli
