// The KServe v2 REST protocol without a socket: what is read, what is refused, what is written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/api.h"
#include "server/fake_service.h"

namespace pinion {
namespace {

using testing::HasSubstr;

struct KserveTest : testing::Test {
  FakeText text;
  FakeGenerator generator;
  ModelService model{.generator = &generator, .text = &text, .name = "m", .max_seq_len = 100, .vocab_size = 257};
  ServerState state{{}, model};

  Reply ask(std::string path, std::string body, std::string method = "POST", std::string header_length = {}) {
    return handle(state, {.method = std::move(method),
                          .path = std::move(path),
                          .content_type = "application/json",
                          .content_encoding = {},
                          .authorization = {},
                          .request_id = "r",
                          .inference_header_length = std::move(header_length),
                          .body = std::move(body)});
  }
  HttpResponse answer(std::string path, std::string body = {}, std::string method = "POST") {
    Reply reply = ask(std::move(path), std::move(body), std::move(method));
    auto* response = std::get_if<HttpResponse>(&reply.content);
    return response != nullptr ? *response : HttpResponse{.status = -1, .body = "(a generation)"};
  }
  static Request request(const Reply& reply) {
    const auto* generation = std::get_if<GenerationReply>(&reply.content);
    return generation != nullptr ? generation->requests.at(0) : Request{};
  }
  static OrderedJson parse(const std::string& body) { return OrderedJson::parse(body); }
};

OutputPiece piece(std::string text, FinishReason finish = FinishReason::none) {
  OutputPiece out{.tokens = {}, .text = text, .logprobs = {}, .prompt_logprobs = {}, .finish = finish};
  for (const char c : text) out.tokens.push_back(static_cast<unsigned char>(c));
  return out;
}

TEST_F(KserveTest, HealthMetadataAndConfiguration) {
  EXPECT_EQ(answer("/v2/health/live", "", "GET").status, 200);
  EXPECT_EQ(answer("/v2/health/ready", "", "GET").status, 200);
  EXPECT_EQ(answer("/v2/models/m/ready", "", "GET").status, 200);
  state.ready = false;
  EXPECT_EQ(answer("/v2/health/live", "", "GET").status, 200);
  EXPECT_EQ(answer("/v2/health/ready", "", "GET").status, 400);
  EXPECT_EQ(answer("/v2/models/m/ready", "", "GET").status, 400);
  EXPECT_EQ(answer("/v2/models/m/infer", "{}").status, 503);
  state.ready = true;
  EXPECT_EQ(parse(answer("/v2", "", "GET").body)["name"], "pinion");
  const auto metadata = parse(answer("/v2/models/ensemble/versions/1", "", "GET").body);
  EXPECT_EQ(metadata["name"], "ensemble");
  EXPECT_EQ(metadata["inputs"][0]["name"], "text_input");
  EXPECT_EQ(metadata["inputs"][0]["shape"], (OrderedJson{-1, 1}));
  EXPECT_EQ(parse(answer("/v2/models/m/config", "", "GET").body)["input"][0]["data_type"], "TYPE_STRING");
  EXPECT_EQ(parse(answer("/v2/repository/index").body)[0]["state"], "READY");
  EXPECT_EQ(answer("/v2/repository/models/m/load").status, 503);
  EXPECT_EQ(answer("/v2/models/m/versions/2", "", "GET").status, 404);
  EXPECT_EQ(answer("/v2/models/m/infer", "", "GET").status, 405);
  EXPECT_EQ(answer("/v2/trace/setting", "", "GET").status, 501);
  EXPECT_EQ(answer("/v2/health/ready/x", "", "GET").status, 404);
}

TEST_F(KserveTest, GenerateReadsTheEnsemblesInputs) {
  const Request r =
      request(ask("/v2/models/ensemble/generate",
                  R"({"id":"7","text_input":"ab","max_tokens":5,"bad_words":"","stop_words":"x,yy","top_k":3,
                                "temperature":0.5,"seed":18446744073709551615,"parameters":{"min_tokens":2}})"));
  EXPECT_EQ(r.prompt, (std::vector<int32_t>{256, 'a', 'b'}));
  EXPECT_EQ(r.sampling.max_tokens, 5);
  EXPECT_EQ(r.sampling.min_tokens, 2);
  EXPECT_EQ(r.sampling.top_k, 3);
  EXPECT_EQ(r.sampling.temperature, 0.5F);
  EXPECT_EQ(r.sampling.seed, ~uint64_t{0});
  EXPECT_EQ(r.sampling.stop, (std::vector<std::string>{"x", "yy"}));
  EXPECT_TRUE(r.sampling.bad_words.empty());
}

TEST_F(KserveTest, WithoutTopKAndTopPTheChoiceIsGreedy) {
  EXPECT_EQ(request(ask("/v2/models/m/generate", R"({"text_input":"a","max_tokens":5,"temperature":0.7})"))
                .sampling.temperature,
            0);
}

TEST_F(KserveTest, AnswersBeginWithThePromptUnlessExcluded) {
  for (const bool exclude : {false, true}) {
    Reply reply = ask("/v2/models/ensemble/generate",
                      std::string(R"({"id":"7","text_input":"ab","max_tokens":5,"exclude_input_in_output":)") +
                          (exclude ? "true}" : "false}"));
    auto& writer = *std::get<GenerationReply>(reply.content).writer;
    std::string out;
    writer.add(0, piece("xy", FinishReason::stop), out);
    ASSERT_TRUE(writer.done());
    const auto body = parse(writer.response().body);
    EXPECT_EQ(body["text_output"], exclude ? "xy" : "abxy");
    EXPECT_EQ(body["model_name"], "ensemble");
    EXPECT_EQ(body["id"], "7");
    EXPECT_EQ(body["sequence_index"], 0);
    EXPECT_FALSE(body.contains("output_log_probs"));
  }
  EXPECT_EQ(
      parse(answer("/v2/models/m/stats", "", "GET").body)["model_stats"][0]["inference_stats"]["success"]["count"], 2);
}

TEST_F(KserveTest, StreamsOnlyNewText) {
  Reply reply = ask("/v2/models/ensemble/generate_stream", R"({"text_input":"ab","max_tokens":5,"stream":true})");
  auto& writer = *std::get<GenerationReply>(reply.content).writer;
  ASSERT_TRUE(writer.streams());
  std::string out;
  writer.add(0, piece("x"), out);
  EXPECT_THAT(out, HasSubstr(R"("text_output":"x")"));
  EXPECT_TRUE(out.starts_with("data: {") && out.ends_with("}\n\n"));
  out.clear();
  writer.add(0, piece("y", FinishReason::length), out);
  EXPECT_THAT(out, HasSubstr(R"("text_output":"y")"));
  out.clear();
  writer.end(out);
  EXPECT_EQ(out, "");
  EXPECT_EQ(writer.error_event({.message = "no"}), "data: {\"error\":\"no\"}\n\n");
  EXPECT_EQ(answer("/v2/models/m/generate", R"({"text_input":"ab","max_tokens":5,"stream":true})").status, 400);
}

// The protocol's worked example: JSON, and behind it two tensors; the answer's only output is binary as well.
TEST_F(KserveTest, BinaryTensorsInAndOut) {
  const std::string head =
      R"({"inputs":[{"name":"text_input","shape":[1,1],"datatype":"BYTES","parameters":{"binary_data_size":6}},)"
      R"({"name":"max_tokens","shape":[1,1],"datatype":"INT32","parameters":{"binary_data_size":4}}],)"
      R"("parameters":{"binary_data_output":true},"outputs":[{"name":"text_output"}]})";
  const std::string tensors("\x02\0\0\0hi\x10\0\0\0", 10);
  Reply reply = ask("/v2/models/ensemble/infer", head + tensors, "POST", std::to_string(head.size()));
  ASSERT_TRUE(std::holds_alternative<GenerationReply>(reply.content));
  EXPECT_EQ(request(reply).sampling.max_tokens, 16);
  auto& writer = *std::get<GenerationReply>(reply.content).writer;
  std::string out;
  writer.add(0, piece("!", FinishReason::stop), out);
  const HttpResponse response = writer.response();
  const std::string want_head =
      R"({"model_name":"ensemble","model_version":"1","outputs":[{"name":"text_output","datatype":"BYTES","shape":[1,1],)"
      R"("parameters":{"binary_data_size":7}}]})";
  EXPECT_EQ(response.body, want_head + std::string("\x03\0\0\0hi!", 7));
  ASSERT_EQ(response.headers.size(), 1u);
  EXPECT_EQ(response.headers[0].second, std::to_string(want_head.size()));
  for (const std::string& length : {"0", "x", "999999", "-1"}) {
    const Reply wrong = ask("/v2/models/m/infer", head + tensors, "POST", length);
    EXPECT_EQ(std::get<HttpResponse>(wrong.content).status, 400) << length;
  }
}

TEST_F(KserveTest, ABatchOfTokenIdsWithSeveralSequences) {
  Reply reply = ask("/v2/models/tensorrt_llm/infer",
                    R"({"inputs":[{"name":"input_ids","shape":[2,3],"datatype":"INT32","data":[[1,2,3],[4,5,0]]},
                    {"name":"input_lengths","shape":[2,1],"datatype":"INT32","data":[3,2]},
                    {"name":"request_output_len","shape":[2,1],"datatype":"INT32","data":[4,5]},
                    {"name":"num_return_sequences","shape":[2,1],"datatype":"INT32","data":[2,2]},
                    {"name":"exclude_input_in_output","shape":[2,1],"datatype":"BOOL","data":[false,true]}]})");
  auto& generation = std::get<GenerationReply>(reply.content);
  ASSERT_EQ(generation.requests.size(), 4u);
  EXPECT_EQ(generation.requests[2].prompt, (std::vector<int32_t>{4, 5}));
  EXPECT_EQ(generation.requests[2].sampling.max_tokens, 5);
  std::string out;
  for (size_t i = 0; i < 4; ++i) generation.writer->add(i, piece("A", FinishReason::length), out);
  const auto outputs = parse(generation.writer->response().body)["outputs"];
  EXPECT_EQ(outputs[0]["name"], "output_ids");
  EXPECT_EQ(outputs[0]["shape"], (OrderedJson{2, 2, 4}));
  EXPECT_EQ(outputs[0]["data"], (OrderedJson{1, 2, 3, 65, 1, 2, 3, 65, 65, 0, 0, 0, 65, 0, 0, 0}));
  EXPECT_EQ(outputs[1]["data"], (OrderedJson{4, 4, 1, 1}));
}

TEST_F(KserveTest, WhatIsWrongIsNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"max_tokens":5})", "text_input"},
      {R"({"text_input":"a"})", "max_tokens"},
      {R"({"text_input":"","max_tokens":5})", "text_input"},
      {R"({"text_input":1,"max_tokens":5})", "text_input"},
      {R"({"text_input":["a","b"],"max_tokens":5})", "text_input"},
      {R"({"text_input":"a","max_tokens":0})", "max_tokens"},
      {R"({"text_input":"a","max_tokens":5.5})", "max_tokens"},
      {R"({"text_input":"a","max_tokens":3000000000})", "max_tokens"},
      {R"({"text_input":"a","max_tokens":99})", "limit is 100"},
      {R"({"text_input":"a","max_tokens":5,"top_p":2})", "top_p"},
      {R"({"text_input":"a","max_tokens":5,"temperature":-1})", "temperature"},
      {R"({"text_input":"a","max_tokens":5,"end_id":257})", "end_id"},
      {R"({"text_input":"a","max_tokens":5,"num_return_sequences":1000})", "num_return_sequences"},
      {R"({"text_input":"a","max_tokens":5,"extra":{}})", "extra"},
      {R"({"text_input":"a","max_tokens":5,"parameters":{"max_tokens":4}})", "max_tokens"},
  };
  for (const auto& [body, named] : cases) {
    const HttpResponse response = answer("/v2/models/m/generate", body);
    EXPECT_EQ(response.status, 400) << body << response.body;
    EXPECT_THAT(response.body, HasSubstr(named)) << body;
  }
  const std::pair<const char*, const char*> tensors[] = {
      {R"([{"name":"text_input","shape":[1],"datatype":"BYTES","data":["a","b"]}])", "text_input"},
      {R"([{"name":"text_input","shape":[-1],"datatype":"BYTES","data":["a"]}])", "text_input"},
      {R"([{"name":"text_input","shape":[99999999999,99999999999],"datatype":"BYTES","data":["a"]}])", "text_input"},
      {R"([{"name":"text_input","shape":[1],"datatype":"STRING","data":["a"]}])", "STRING"},
      {R"([{"name":"text_input","shape":[1],"datatype":"BYTES"}])", "text_input"},
      {R"([{"shape":[1],"datatype":"BYTES"}])", "name"},
      {R"([{"name":"x","shape":[1],"datatype":"FP16","data":[1]}])", "FP16"},
      {R"([{"name":"max_tokens","shape":[1],"datatype":"INT8","data":[128]}])", "128"},
      {R"([{"name":"max_tokens","shape":[1],"datatype":"INT32","parameters":{"binary_data_size":4}}])", "max_tokens"},
      {R"({})", "inputs"},
  };
  for (const auto& [inputs, named] : tensors) {
    const HttpResponse response = answer("/v2/models/m/infer", R"({"inputs":)" + std::string(inputs) + "}");
    EXPECT_EQ(response.status, 400) << inputs << response.body;
    EXPECT_THAT(response.body, HasSubstr(named)) << inputs;
  }
}

TEST_F(KserveTest, WhatIsNotImplementedIsRefusedByNameUnlessItSaysNothing) {
  const auto with = [](const char* field) { return R"({"text_input":"a","max_tokens":5,)" + std::string(field) + "}"; };
  const HttpResponse refused = answer("/v2/models/m/generate", with(R"("beam_width":2)"));
  EXPECT_EQ(refused.status, 501);
  EXPECT_THAT(refused.body, HasSubstr("beam_width"));
  EXPECT_EQ(answer("/v2/models/m/generate", with(R"("beam_width":1)")).status, -1);
}

TEST_F(KserveTest, StrictNames) {
  EXPECT_EQ(answer("/v2/models/other", "", "GET").status, 200);
  ServerState strict({.strict_model_name = true}, model);
  const auto status = [&](const char* path) {
    const Reply reply = handle(strict, {.method = "GET", .path = path});
    return std::get<HttpResponse>(reply.content).status;
  };
  EXPECT_EQ(status("/v2/models/other"), 404);
  EXPECT_EQ(status("/v2/models/m"), 200);
}

}  // namespace
}  // namespace pinion
