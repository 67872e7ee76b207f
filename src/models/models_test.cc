// What every family's config() refuses, and where the graph says that fused weights lie.
#include <gtest/gtest.h>

#include <sstream>

#include "graph/builder.h"
#include "models/families.h"

namespace pinion {

namespace sandwich {  // the family of docs/howto/add-model.md, compiled from that page
Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides);
void build(Builder& b, const ModelConfig& c);
}  // namespace sandwich

namespace {

Json small_config(std::string_view architecture) {
  return example_config(architecture);
}

// An option that is listed but not read would be ignored in silence.
TEST(Families, ReadEveryOptionThatTheyList) {
  for (const ModelFamily& family : model_families()) {
    const Json whole = small_config(family.architecture);
    const auto model = build_model(whole, "config.json");
    ASSERT_TRUE(model.ok()) << family.architecture << ": " << model.error().message;
    std::istringstream options{std::string(family.options)};
    for (std::string key; options >> key;) {
      Json config = whole;
      config[key] = Json{{"no", "such value"}};
      const auto refused = build_model(config, "config.json");
      ASSERT_FALSE(refused.ok()) << family.architecture << " does not read " << key;
      EXPECT_NE(refused.error().message.find(key), std::string::npos) << refused.error().message;
    }
  }
}

TEST(Families, RefuseWhatTheyCannotRunByName) {
  const auto refuses = [](std::string_view architecture, const char* key, Json value) {
    Json config = small_config(architecture);
    config[key] = std::move(value);
    const auto model = build_model(config, "config.json");
    EXPECT_FALSE(model.ok()) << architecture << " " << key;
    if (!model.ok()) {
      EXPECT_NE(model.error().message.find(key), std::string::npos) << model.error().message;
    }
  };
  refuses("LlamaForCausalLM", "hidden_act", "swoosh");
  refuses("GemmaForCausalLM", "use_bidirectional_attention", true);
  refuses("GPT2LMHeadModel", "add_cross_attention", true);
  refuses("OPTForCausalLM", "layer_norm_elementwise_affine", false);
  refuses("PhiForCausalLM", "tie_word_embeddings", true);
  refuses("SmolLM3ForCausalLM", "no_rope_layers", Json{1, 0});
  refuses("Gemma2ForCausalLM", "layer_types", Json{"sliding_attention"});
  refuses("StableLmForCausalLM", "num_key_value_heads", 3);
}

TEST(Families, AnUnknownArchitectureIsRefusedWithTheNearest) {
  const auto model = build_model(small_config("Gemma2ForCausalLN"), "config.json");
  ASSERT_FALSE(model.ok());
  EXPECT_NE(model.error().message.find("nearest family is Gemma2ForCausalLM"), std::string::npos)
      << model.error().message;
}

const WeightPart& part(const Graph& g, std::string_view name) {
  for (const Node& n : g.nodes()) {
    for (const WeightUse& w : n.weights) {
      for (const WeightPart& p : w.parts) {
        if (p.name == name) return p;
      }
    }
  }
  ADD_FAILURE() << name << " is in no node";
  static const WeightPart none;
  return none;
}

TEST(Families, KnowWhereFusedRowsLie) {
  // GPT-NeoX: per head its query, key and value.
  auto neox = build_model(small_config("GPTNeoXForCausalLM"), "config.json");
  ASSERT_TRUE(neox.ok()) << neox.error().message;
  const FusedRows& k = part(neox->graph, "gpt_neox.layers.0.attention.k_proj.weight").fused;
  EXPECT_EQ(k.name, "gpt_neox.layers.0.attention.query_key_value.weight");
  EXPECT_EQ(k.rows, 192);
  EXPECT_EQ(k.row(0), 8);   // after the first head's query
  EXPECT_EQ(k.row(9), 33);  // row 1 of head 1: 24 + 8 + 1

  // Phi-3: all queries, all keys, all values.
  auto phi3 = build_model(small_config("Phi3ForCausalLM"), "config.json");
  ASSERT_TRUE(phi3.ok()) << phi3.error().message;
  EXPECT_EQ(part(phi3->graph, "model.layers.1.self_attn.v_proj.weight").fused.row(31), 127);
  EXPECT_EQ(part(phi3->graph, "model.layers.1.mlp.up_proj.weight").fused.row(2), 50);

  // Falcon's new block: per KV head its two query heads, the key, the value.
  Json config = small_config("FalconForCausalLM");
  config["new_decoder_architecture"] = true;
  auto falcon = build_model(config, "config.json");
  ASSERT_TRUE(falcon.ok()) << falcon.error().message;
  const std::string scope = "transformer.h.2.self_attention.";
  EXPECT_EQ(part(falcon->graph, scope + "q_proj.weight").fused.row(17), 33);  // row 1 of KV head 1's first query
  EXPECT_EQ(part(falcon->graph, scope + "v_proj.weight").fused.row(8), 56);   // 32 + 24

  auto gpt2 = build_model(small_config("GPT2LMHeadModel"), "config.json");
  ASSERT_TRUE(gpt2.ok()) << gpt2.error().message;
  EXPECT_TRUE(part(gpt2->graph, "transformer.h.0.mlp.c_fc.weight").transposed);
}

// Following the page alone gives a family whose graph holds.
TEST(Families, TheHowToMakesOne) {
  Json json = example_config("SandwichForCausalLM");
  json["logit_scale"] = 0.5;
  const auto config = sandwich::config(ConfigReader(json, "config.json"), {});
  ASSERT_TRUE(config.ok()) << config.error().message;
  Graph graph;
  Builder builder(graph);
  sandwich::build(builder, *config);
  const Status status = verify(graph);
  EXPECT_TRUE(status.ok()) << status.error().message;
  part(graph, "model.layers.3.post_mlp_layernorm.weight");
  const auto* cap = std::get_if<SoftCap>(&graph.nodes().back().op);
  ASSERT_NE(cap, nullptr);
  EXPECT_EQ(cap->scale, 0.5f);
  json["logit_scale"] = "much";
  EXPECT_FALSE(sandwich::config(ConfigReader(json, "config.json"), {}).ok());
}

}  // namespace
}  // namespace pinion
