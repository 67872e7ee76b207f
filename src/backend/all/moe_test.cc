// Experts beyond the case table: routing against published numbers, and that no kernel of the CPU reads an expert whom
// no token chose.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "backend/all/backends.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routed route(const Backend& backend, const MoeRoute& route_op, std::vector<float> logits,
             std::vector<float> bias = {}) {
  auto device = backend.open({.threads = 1});
  EXPECT_TRUE(device.ok());
  auto stream = (*device)->make_stream();
  const Op op = route_op;
  std::vector<WeightView> weights;
  std::vector<WeightSpec> specs;
  if (!bias.empty()) {
    specs.push_back({.dtype = DType::f32, .rows = 1, .cols = route_op.experts});
    weights.push_back({specs[0], bias.data()});
  }
  Routed out{std::vector<int32_t>(route_op.top_k), std::vector<float>(route_op.top_k)};
  const TensorView in{logits.data(), DType::f32, {1, route_op.experts}};
  const TensorView outs[] = {{out.ids.data(), DType::i32, {1, route_op.top_k}},
                             {out.weights.data(), DType::f32, {1, route_op.top_k}}};
  const Call call{.op = &op, .rows = 1, .inputs = 1, .weights = specs};
  for (const Kernel& k : backend.kernels(OpKind::moe_route)) {
    const size_t bytes = k.workspace ? k.workspace(call, {}, (*device)->info()) : 0;
    std::vector<float> workspace(bytes / sizeof(float) + 1);
    k.launch({.op = &op,
              .in = {&in, 1},
              .out = outs,
              .weights = weights,
              .workspace = std::as_writable_bytes(std::span(workspace)).first(bytes)},
             *stream);
    stream->synchronize();
  }
  return out;
}

class Routing : public testing::TestWithParam<const char*> {
 protected:
  const Backend& backend() const { return *find_backend(GetParam()); }
};

// Phi-3.5-MoE's sparsemixer at inference, computed in double precision from its definition.
TEST_P(Routing, SparsemixerLeavesFarLogitsOut) {
  const MoeRoute op{.experts = 6, .top_k = 2, .score = RouteScore::sparsemixer, .jitter = 0.01f};
  Routed r = route(backend(), op, {1, .995f, .2f, .99f, -.5f, .1f});
  EXPECT_EQ(r.ids, (std::vector<int32_t>{0, 1}));
  EXPECT_NEAR(r.weights[0], 0.335001382, 1e-6);
  EXPECT_NEAR(r.weights[1], 0.501249997, 1e-6);
  r = route(backend(), op, {1, .3f, .2f, -.99f, -.5f, .1f});
  EXPECT_EQ(r.ids, (std::vector<int32_t>{0, 1}));
  EXPECT_NEAR(r.weights[0], 1, 1e-6);
  EXPECT_NEAR(r.weights[1], 1, 1e-6);
}

// DeepSeek-V3's groups and bias: the bias chooses, the weights do not see it.
TEST_P(Routing, TheBiasChoosesGroupsAndExpertsOnly) {
  const MoeRoute op{.experts = 8,
                    .top_k = 3,
                    .groups = 4,
                    .topk_groups = 2,
                    .score = RouteScore::sigmoid,
                    .group_score = GroupScore::two_largest,
                    .bias = true,
                    .normalize = true,
                    .scale = 2.5f};
  const Routed r =
      route(backend(), op, {.2f, -1, 1.5f, .3f, -.4f, 2, .9f, -2}, {.1f, 0, -.3f, .2f, 0, -.5f, .05f, .4f});
  EXPECT_EQ(r.ids, (std::vector<int32_t>{3, 6, 7}));
  EXPECT_NEAR(r.weights[0], 1.022434, 2e-6);
  EXPECT_NEAR(r.weights[1], 1.265400, 2e-6);
  EXPECT_NEAR(r.weights[2], 0.212166, 2e-6);
}

// Equal scores: the lower id, on every backend.
TEST_P(Routing, TiesGoToTheLowerId) {
  const Routed r = route(backend(), {.experts = 6, .top_k = 3, .normalize = true}, {0, 1, 0, 1, 1, 1});
  EXPECT_EQ(r.ids, (std::vector<int32_t>{1, 3, 4}));
  for (float w : r.weights) EXPECT_NEAR(w, 1.0 / 3, 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Backends, Routing, testing::Values("reference", "cpu"));

// Experts lie in pages of their own; those that no slot names may not even be touched.
TEST(MoeLinear, ReadsNoExpertThatIsNotChosen) {
  const Backend& backend = *find_backend("cpu");
  auto device = backend.open({.threads = 2});
  ASSERT_TRUE(device.ok());
  auto stream = (*device)->make_stream();
  const int64_t page = sysconf(_SC_PAGESIZE), in = page / 8, out = 4, experts = 16;
  const MoeLinear linear{.experts = experts, .top_k = 2, .in = in, .out = out};
  const size_t expert_bytes = out * in * 2;  // a whole number of pages
  auto* memory = static_cast<std::byte*>(
      mmap(nullptr, experts * expert_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(static_cast<void*>(memory), MAP_FAILED);
  for (int64_t i = 0; i < experts * out * in; ++i) store_f32(memory, DType::bf16, i, 1);
  for (int32_t rows : {1, 2, 40}) {
    std::vector<int32_t> ids;
    for (int32_t t = 0; t < rows; ++t) ids.insert(ids.end(), {3, t % 2 == 0 ? 7 : 11});
    for (int64_t e = 0; e < experts; ++e) {
      const bool chosen = e == 3 || e == 7 || (e == 11 && rows > 1);
      ASSERT_EQ(mprotect(memory + e * expert_bytes, expert_bytes, chosen ? PROT_READ : PROT_NONE), 0);
    }
    std::vector<float> x(rows * in, 0.5f), y(rows * 2 * out);
    const Op op = linear;
    const WeightSpec spec{.dtype = DType::bf16, .rows = experts * out, .cols = in};
    const WeightView weight{spec, memory};
    const TensorView ins[] = {{x.data(), DType::f32, {rows, in}}, {ids.data(), DType::i32, {rows, 2}}};
    const TensorView outs{y.data(), DType::f32, {rows, 2 * out}};
    const Call call{.op = &op, .rows = rows, .inputs = 2, .weights = {&spec, 1}};
    for (const Kernel& k : backend.kernels(OpKind::moe_linear)) {
      const size_t bytes = k.workspace(call, {}, (*device)->info());
      auto workspace = (*device)->allocate(bytes);
      ASSERT_TRUE(workspace.ok());
      k.launch({.op = &op,
                .in = ins,
                .out = {&outs, 1},
                .weights = {&weight, 1},
                .workspace = {(*workspace)->data(), bytes}},
               *stream);
      for (float v : y) EXPECT_FLOAT_EQ(v, 0.5f * static_cast<float>(in));
    }
  }
  munmap(memory, experts * expert_bytes);
}

}  // namespace
}  // namespace pinion
