// Triton's model configurations as people write them.
#include "server/pbtxt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pinion {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(Pbtxt, TheGuidesConfiguration) {
  const auto config = read_triton_config(R"(
    name: "tensorrt_llm"  # a comment
    backend: "tensorrtllm"
    max_batch_size: 128
    model_transaction_policy { decoupled: true }
    input [ { name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }, { name: 'x', dims: [ 1, 2 ] } ]
    parameters { key: "engine_dir" value { string_value: "/engines/" "llama" } }
    parameters: { key: "gpt_model_type" value: { string_value: "${batching}" } };
    parameters: { key: "kv_cache_free_gpu_mem_fraction"; value: { string_value: "0.85" } }
  )",
                                         "config.pbtxt");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->name, "tensorrt_llm");
  EXPECT_EQ(config->backend, "tensorrtllm");
  EXPECT_EQ(config->max_batch_size, 128);
  EXPECT_TRUE(config->decoupled);
  EXPECT_EQ(config->parameter("engine_dir"), "/engines/llama");
  EXPECT_EQ(config->parameter("kv_cache_free_gpu_mem_fraction"), "0.85");
  EXPECT_EQ(config->parameter("gpt_model_type"), "");  // an unfilled template is not set
}

TEST(Pbtxt, EnsembleSteps) {
  const auto config = read_triton_config(
      R"(platform: "ensemble" ensemble_scheduling { step [ { model_name: "preprocessing" model_version: -1
         input_map { key: "QUERY" value: "text_input" } }, { model_name: "tensorrt_llm" } ] })",
      "c");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_THAT(config->steps, ElementsAre("preprocessing", "tensorrt_llm"));
}

TEST(Pbtxt, WhatIsWrongIsNamedWithItsLine) {
  const auto error = [](std::string_view text) { return parse_pbtxt(text, "c").error().message; };
  EXPECT_THAT(error("a: 1\nb: {\n"), HasSubstr("line 3"));
  EXPECT_THAT(error("a"), HasSubstr("behind \"a\""));
  EXPECT_THAT(error("a: \"x\n"), HasSubstr("does not end"));
  EXPECT_THAT(error("a: [ 1 2 ]"), HasSubstr("list"));
  EXPECT_THAT(error("}"), HasSubstr("field's name"));
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "a {";
  EXPECT_THAT(error(deep), HasSubstr("too deeply"));
  EXPECT_FALSE(read_triton_config("max_batch_size: -1", "c").ok());
}

}  // namespace
}  // namespace pinion
