// --deterministic: what a request gets depends on nothing but the request, not on the batch, chunks, prefix hits or
// preemption. The same run without the mode, over a kernel that sums in another order in a batch, shows that this test
// can fail.
#include <gtest/gtest.h>

#include <random>

#include "backend/all/backends.h"
#include "compiled_model.h"
#include "planted_backend.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

// A linear kernel as a GPU's split-K is: right, and the order of its sums follows the number of rows.
std::string why_not(const Call& call, const DeviceInfo&) {
  const auto& op = std::get<Linear>(*call.op);
  return op.epilogue != Epilogue::none || op.bias ? "plain products only" : "";
}
double fastest(const Call&, const Tuning&, const DeviceInfo&) {
  return 0;
}
void sum_by_batch(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<Linear>(*args.op);
  const int64_t rows = args.in[0].shape[0], parts = std::min<int64_t>(rows, 7);
  const WeightView& w = args.weights[0];
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = args.in[0].as<float>() + r * op.in;
    for (int64_t o = 0; o < op.out; ++o) {
      float total = 0;
      for (int64_t part = 0; part < parts; ++part) {
        float sum = 0;
        for (int64_t k = op.in * part / parts; k < op.in * (part + 1) / parts; ++k)
          sum += x[k] * load_f32(w.data, w.dtype, o * op.in + k);
        total += sum;
      }
      args.out[0].as<float>()[r * op.out + o] = total;
    }
  }
}
constexpr std::string_view kByBatch = "cpu.linear.sum_by_batch";

PlantedBackend planted() {
  PlantedBackend backend(*find_backend("cpu"));
  backend.plant({.name = kByBatch,
                 .op = OpKind::linear,
                 .batch_invariant = false,
                 .why_not = why_not,
                 .tunings = nullptr,
                 .estimate_us = fastest,
                 .workspace = nullptr,
                 .launch = sum_by_batch});
  return backend;
}

std::vector<Request> requests() {
  std::mt19937 random(3);
  std::vector<Request> out;
  for (int i = 0; i < 8; ++i) {
    Request r{.id = std::to_string(i), .prompt = {}, .sampling = {}};
    for (int n = 0; n < 5 + 11 * i; ++n) r.prompt.push_back(static_cast<int32_t>(3 + random() % 180));
    r.sampling.temperature = i % 2 ? 0.8f : 0;
    r.sampling.seed = i;
    r.sampling.max_tokens = 24;
    r.sampling.ignore_eos = true;
    r.sampling.logprobs = 4;
    out.push_back(std::move(r));
  }
  return out;
}

// Each request in a fresh loop of its own.
std::vector<Answer> ask_alone(const CompiledModel& model) {
  std::vector<Answer> answers;
  for (const Request& r : requests()) {
    EngineLoop loop(model.executor(), nullptr, {.prefix_reuse = false});
    answers.push_back(ask(loop, {r})[0]);
  }
  return answers;
}

int differing(const std::vector<Answer>& a, const std::vector<Answer>& b) {
  int n = 0;
  for (size_t i = 0; i < a.size(); ++i) n += !same(a[i], b[i]);
  return n;
}

const fs::path checkpoint = fs::path(PINION_GOLDEN_DIR) / "families/qwen3";
constexpr int32_t kFewBlocks = 20;  // of 16 tokens, for eight sequences of up to 106: they do not all fit
constexpr int32_t kManyBlocks = 80;
ExecutorOptions limits(int32_t blocks) {
  return {.num_blocks = blocks, .max_batch_size = 8, .max_num_tokens = 256};
}

TEST(Deterministic, NothingButTheRequestCounts) {
  const PlantedBackend backend = planted();
  const CompiledModel model(checkpoint, backend, {.block_size = 16, .deterministic = true}, limits(kManyBlocks));
  EXPECT_TRUE(model.engine().manifest().deterministic);
  const auto programs = model.engine().programs();
  for (const Program& p : programs) {
    for (size_t i = 0; i < p.steps.size(); ++i) {
      EXPECT_NE(p.steps[i].kernel, kByBatch);
      EXPECT_EQ(p.steps[i].kernel, programs[0].steps[i].kernel) << "one kernel for all sizes, node " << i;
      EXPECT_EQ(p.steps[i].tuning, programs[0].steps[i].tuning);
    }
  }
  const std::vector<Answer> alone = ask_alone(model);
  for (const Answer& a : alone) EXPECT_EQ(a.tokens.size(), 24u) << a.error;
  for (const int32_t chunk : {7, 512}) {
    EngineLoop loop(model.executor(), nullptr, {.chunk_tokens = chunk});
    EXPECT_EQ(differing(ask(loop, requests()), alone), 0) << "in a batch, chunks of " << chunk;
    const std::vector<Answer> again = ask(loop, requests());
    EXPECT_GT(loop.stats().cached_tokens, 0u);
    EXPECT_EQ(differing(again, alone), 0) << "after prefix hits";
  }
  const CompiledModel small(checkpoint, backend, {.block_size = 16, .deterministic = true}, limits(kFewBlocks));
  EngineLoop loop(small.executor(), nullptr, {});
  EXPECT_EQ(differing(ask(loop, requests()), alone), 0) << "with preemption";
  EXPECT_GT(loop.stats().preemptions, 0u);
}

TEST(Deterministic, WithoutItTheBatchShows) {
  const PlantedBackend backend = planted();
  const CompiledModel model(checkpoint, backend, {.block_size = 16}, limits(kManyBlocks));
  bool chosen = false;
  for (const KernelChoice& step : model.engine().programs()[0].steps) chosen |= step.kernel == kByBatch;
  ASSERT_TRUE(chosen);
  const std::vector<Answer> alone = ask_alone(model);
  EXPECT_EQ(differing(ask_alone(model), alone), 0) << "the same run twice";
  EngineLoop loop(model.executor(), nullptr, {});
  EXPECT_GT(differing(ask(loop, requests()), alone), 0);
}

// Every CPU kernel sums in an order of its own that no batch changes, so the mode costs nothing there and the promise
// holds without it, as long as all kernels of the CPU agree bit for bit.
TEST(Deterministic, CpuKernelsKeepThePromiseWithoutTheMode) {
  const CompiledModel model(checkpoint, *find_backend("cpu"), {.block_size = 16}, limits(kManyBlocks));
  const std::vector<Answer> alone = ask_alone(model);
  EngineLoop loop(model.executor(), nullptr, {.chunk_tokens = 16});
  EXPECT_EQ(differing(ask(loop, requests()), alone), 0);
  EXPECT_EQ(differing(ask(loop, requests()), alone), 0);
}

}  // namespace
}  // namespace pinion
