#include "graph/graph.h"

#include <gtest/gtest.h>

#include "graph/builder.h"

namespace pinion {
namespace {

RopeSpec spec(RopeType type, int dim, double theta, double factor, int64_t original, int64_t max) {
  RopeSpec s;
  s.type = type, s.rotary_dim = dim, s.theta = theta, s.factor = factor, s.original_max_position = original,
  s.max_position = max;
  return s;
}

// Expected values: the formulas in double precision, as published with each scaling.
TEST(RopeSpec, FrequenciesOfEveryScaling) {
  auto near = [](double a, double b) { EXPECT_NEAR(a / b, 1, 1e-5); };
  auto plain = rope_frequencies(spec(RopeType::plain, 128, 500000, 1, 0, 8192), 1);
  near(plain.inverse[1], 0.814617234), near(plain.inverse[63], 2.45514079e-06);
  auto l31 = spec(RopeType::llama3, 128, 500000, 8, 8192, 131072);
  near(rope_frequencies(l31, 1).inverse[29], 0.00216657076), near(rope_frequencies(l31, 1).inverse[35], 9.55621235e-05);
  auto yarn = spec(RopeType::yarn, 128, 1e6, 4, 32768, 131072);
  near(rope_frequencies(yarn, 1).inverse[24], 0.00537532149),
      near(rope_frequencies(yarn, 1).attention_factor, 1.13862944);
  yarn = spec(RopeType::yarn, 64, 150000, 32, 4096, 131072);
  yarn.truncate = false;
  near(rope_frequencies(yarn, 1).inverse[12], 0.00679495949),
      near(rope_frequencies(yarn, 1).attention_factor, 1.34657359);
  auto dynamic = spec(RopeType::dynamic, 128, 10000, 2, 0, 4096);
  near(rope_frequencies(dynamic, 4096).inverse[1], std::pow(10000.0, -2.0 / 128));
  near(rope_frequencies(dynamic, 8192).inverse[1], std::pow(30527.7367, -2.0 / 128));
  EXPECT_EQ(rope_variant(dynamic, 100), rope_variant(dynamic, 4096));
  EXPECT_NE(rope_variant(dynamic, 5000), rope_variant(dynamic, 5001));
}

Graph small() {
  Graph g;
  g.vocab_size = 32, g.context_length = 64;
  g.kv_layers = {{1, 8, 0}};
  g.ropes = {spec(RopeType::plain, 8, 10000, 1, 0, 64)};
  Builder b(g);
  const Scope w("model");
  Value x = b.embed(w / "embed_tokens", 32, 16);
  Value q = b.linear(x, w / "q", 16), k = b.linear(x, w / "k", 8), v = b.linear(x, w / "v", 8);
  q = b.rope(q, w / "q", Rope{2, 8, 8, 0}), k = b.rope(k, w / "k", Rope{1, 8, 8, 0});
  x = b.add(x, b.attention(q, k, v, w / "attn", Attention{2, 1, 8, 0.35f, 0, 0}), w);
  g.logits = b.linear(b.select_rows(x, w), Scope("lm_head"), 32);
  return g;
}

TEST(Graph, VerifiesAndSurvivesJson) {
  const Graph g = small();
  ASSERT_TRUE(verify(g).ok());
  auto back = graph_from_json(to_json(g), "test");
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(to_text(*back), to_text(g));
}

TEST(Graph, BrokenGraphsAreErrors) {
  const Json good = to_json(small());
  auto refused = [](Json j) { return !graph_from_json(j, "test").ok(); };
  Json j = good;
  j["nodes"][1]["in"] = {99};
  EXPECT_TRUE(refused(j));
  j = good, j["nodes"][0]["op"] = "nothing";
  EXPECT_TRUE(refused(j));
  j = good, j["nodes"][1]["weights"][0]["rows"] = 17;
  EXPECT_TRUE(refused(j));
  j = good, j["logits"] = 0;
  EXPECT_TRUE(refused(j));
  j = good, j["kv_layers"] = Json::array();
  EXPECT_TRUE(refused(j));
  j = good, j.erase("values");
  EXPECT_TRUE(refused(j));
  std::vector<Node> nodes = small().nodes();
  std::swap(nodes[0], nodes[1]);
  Graph g = small();
  g.replace_nodes(nodes);
  EXPECT_FALSE(verify(g).ok());
}

// One layer of latent attention, one of experts of which each has its own tensors.
Graph experts_and_latents() {
  Graph g;
  g.vocab_size = 32, g.context_length = 64;
  g.kv_layers = {{1, 12, 0, true}};
  g.ropes = {spec(RopeType::plain, 4, 10000, 1, 0, 64)};
  Builder b(g);
  const Scope w("model");
  Value x = b.embed(w / "embed_tokens", 32, 16);
  const Value q = b.linear(x, w / "q", 2 * 10), latent = b.linear(x, w / "kv_a", 12);
  const MlaKvWrite write{.heads = 2, .nope = 6, .rope = 4, .rank = 8};
  const MlaAttention attention{.heads = 2, .nope = 6, .rope = 4, .rank = 8, .v = 5};
  Value y = b.node(write, {q, latent}, w, {{"norm", 1, 8, {{.name = "norm", .rows = 8}}}})[0];
  y = b.node(attention, {y}, w, {{"kv_b", 22, 8, {{.name = "kv_b", .rows = 22}}}})[0];
  x = b.add(x, b.linear(y, w / "o", 16), w);
  const auto routing = b.node(MoeRoute{.experts = 3, .top_k = 2}, {b.linear(x, w / "router", 3)}, w);
  WeightUse up{"weight", 3 * 8, 16, {}, true};
  for (const char* name : {"gate", "up"}) {
    for (int64_t e = 0; e < 3; ++e) up.parts.push_back({.name = (w / e / name).path(), .rows = 4});
  }
  WeightUse down{"weight", 3 * 16, 4, {}};
  for (int64_t e = 0; e < 3; ++e)
    down.parts.push_back({.name = "down", .rows = 16, .fused = {}, .transposed = true, .stack = 3, .index = e});
  const MoeLinear first{.experts = 3, .top_k = 2, .in = 16, .out = 8, .epilogue = ExpertEpilogue::gated};
  const MoeLinear second{.experts = 3, .top_k = 2, .in = 4, .out = 16, .per_slot = true};
  Value h = b.node(first, {x, routing[0]}, w, {up})[0];
  h = b.node(second, {h, routing[0]}, w, {down})[0];
  x = b.add(x, b.node(MoeCombine{.top_k = 2, .width = 16}, {h, routing[1]}, w)[0], w);
  g.logits = b.linear(b.select_rows(x, w), Scope("lm_head"), 32);
  return g;
}

TEST(Graph, ExpertsAndLatentsSurviveJson) {
  const Graph g = experts_and_latents();
  ASSERT_TRUE(verify(g).ok()) << verify(g).error().message;
  auto back = graph_from_json(to_json(g), "test");
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(to_text(*back), to_text(g));
  EXPECT_EQ(back->kv_layers, g.kv_layers);
  for (size_t i = 0; i < g.nodes().size(); ++i) EXPECT_EQ(back->nodes()[i].weights, g.nodes()[i].weights);
}

TEST(Graph, BrokenExpertsAndLatentsAreErrors) {
  const Json good = to_json(experts_and_latents());
  const auto node = [](Json& j, std::string_view op) -> Json& {
    return *std::ranges::find_if(j["nodes"], [&](const Json& n) { return n["op"] == op; });
  };
  const auto refused = [](const Json& j) { return !graph_from_json(j, "test").ok(); };
  ASSERT_FALSE(refused(good));
  Json j = good;
  j["kv_layers"][0]["latent"] = false;
  EXPECT_TRUE(refused(j)) << "latent attention over a cache of keys and values";
  j = good, node(j, "mla_kv_write")["fields"]["rank"] = 9;
  EXPECT_TRUE(refused(j));
  j = good, node(j, "moe_route")["fields"]["top_k"] = 4;
  EXPECT_TRUE(refused(j)) << "more experts than there are";
  j = good, node(j, "moe_route")["fields"]["groups"] = 2;
  EXPECT_TRUE(refused(j)) << "groups that do not divide";
  j = good, node(j, "moe_linear")["weights"][0]["parts"][0]["rows"] = 5;
  EXPECT_TRUE(refused(j)) << "halves of two heights";
  j = good, j["values"][node(j, "moe_route")["out"][0].get<int>()][2] = "float32";
  EXPECT_TRUE(refused(j)) << "experts' ids that are no integers";
  j = good, node(j, "moe_combine")["in"][1] = node(j, "moe_route")["out"][0];
  EXPECT_TRUE(refused(j)) << "ids in the place of weights";
}

TEST(Graph, ShapeRulesOfTheDenseFamiliesOps) {
  const auto takes = [](const auto& op, std::vector<ValueSpec> in) { return op.shapes(in).ok(); };
  const ValueSpec heads{Rows::tokens, 12};
  EXPECT_TRUE(takes(LayerNorm{.width = 4}, {heads}));
  EXPECT_TRUE(takes(LayerNorm{.width = 4, .groups = 3}, {heads}));
  EXPECT_FALSE(takes(LayerNorm{.width = 4, .groups = 2}, {heads})) << "a weight for two of three groups";
  EXPECT_FALSE(takes(LayerNorm{.width = 5}, {heads}));
  EXPECT_FALSE(takes(Act{.width = 11}, {heads}));
  EXPECT_FALSE(takes(SoftCap{.width = 12}, {heads, heads}));
  EXPECT_FALSE(takes(Embed{.vocab = 4, .width = 12, .positions = true, .offset = 4}, {}));
  Attention alibi{.heads = 3, .kv_heads = 3, .head_dim = 4, .alibi = 1, .alibi_heads = 6, .alibi_first = 3};
  EXPECT_TRUE(takes(alibi, {heads}));
  alibi.alibi_first = 4;
  EXPECT_FALSE(takes(alibi, {heads})) << "slopes of heads that the model does not have";
}

// The published slopes: powers of 2^(-8/n); heads past a power of two take every other slope of twice as many.
TEST(Graph, AlibiSlopes) {
  const Attention twelve{.heads = 12, .alibi = 1, .alibi_heads = 12};
  EXPECT_FLOAT_EQ(alibi_slope(twelve, 0), 0.5f);
  EXPECT_FLOAT_EQ(alibi_slope(twelve, 7), 0.00390625f);
  EXPECT_FLOAT_EQ(alibi_slope(twelve, 8), 0.707106781f);
  EXPECT_FLOAT_EQ(alibi_slope(twelve, 11), 0.0883883476f);
  const Attention rank{.heads = 6, .alibi = 1, .alibi_heads = 12, .alibi_first = 6};
  EXPECT_FLOAT_EQ(alibi_slope(rank, 3), alibi_slope(twelve, 9));
}

}  // namespace
}  // namespace pinion
