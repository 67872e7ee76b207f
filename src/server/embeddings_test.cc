// /v1/embeddings without a socket: what is read, what is refused, what is written.
#include "server/embeddings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "server/api.h"
#include "server/fake_service.h"

namespace pinion {
namespace {

using testing::HasSubstr;

struct EmbeddingsTest : testing::Test {
  FakeText text;
  FakeGenerator generator;
  ModelService model{.generator = &generator, .text = &text, .name = "m", .max_seq_len = 20, .vocab_size = 257};
  ServerState state{{}, model};

  Reply ask(const std::string& body) {
    HttpRequest request;
    request.method = "POST";
    request.path = "/v1/embeddings";
    request.content_type = "application/json";
    request.request_id = "r";
    request.body = body;
    return handle(state, request);
  }
  std::string refused(const std::string& body) {
    Reply reply = ask(body);
    const auto* response = std::get_if<HttpResponse>(&reply.content);
    if (response == nullptr) return "it was taken";
    EXPECT_EQ(response->status, 400);
    return response->body;
  }
  // The answer when the engine gives each input the vector.
  OrderedJson answer(const std::string& body, const std::vector<float>& vector) {
    Reply reply = ask(body);
    auto* generation = std::get_if<GenerationReply>(&reply.content);
    if (generation == nullptr) return OrderedJson::parse(std::get<HttpResponse>(reply.content).body);
    requests = generation->requests;
    std::string none;
    for (size_t i = requests.size(); i-- > 0;) {  // in any order
      OutputPiece piece;
      piece.finish = FinishReason::stop;
      piece.embedding = vector;
      generation->writer->add(i, std::move(piece), none);
    }
    EXPECT_TRUE(generation->writer->done());
    return OrderedJson::parse(generation->writer->response().body);
  }
  std::vector<Request> requests;
};

TEST_F(EmbeddingsTest, EveryFormOfInput) {
  auto body = answer(R"({"model":"m","input":"ab"})", {3, 4});
  EXPECT_EQ(body["data"][0]["embedding"], (OrderedJson{0.6F, 0.8F}));
  EXPECT_EQ(body["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(requests[0].prompt, (std::vector<int32_t>{256, 'a', 'b'}));
  EXPECT_EQ(requests[0].pooling, Pooling::last);
  body = answer(R"({"input":["a","bc"],"pooling":"mean","normalize":false})", {3, 4});
  EXPECT_EQ(body["data"].size(), 2);
  EXPECT_EQ(body["data"][1]["index"], 1);
  EXPECT_EQ(body["data"][1]["embedding"], (OrderedJson{3.0F, 4.0F}));
  EXPECT_EQ(requests[1].pooling, Pooling::mean);
  answer(R"({"input":[1,2,3]})", {1});
  EXPECT_EQ(requests[0].prompt, (std::vector<int32_t>{1, 2, 3}));
  answer(R"({"input":[[1],[2,3]],"truncate_prompt_tokens":1})", {1});
  EXPECT_EQ(requests[1].prompt, (std::vector<int32_t>{3}));
}

TEST_F(EmbeddingsTest, Base64HoldsTheFloatsAsTheyAre) {
  // 3.0F and 4.0F are 00 00 40 40 and 00 00 80 40
  const auto body = answer(R"({"input":"a","encoding_format":"base64","normalize":false})", {3, 4});
  EXPECT_EQ(body["data"][0]["embedding"], "AABAQAAAgEA=");
}

TEST_F(EmbeddingsTest, WhatIsWrongIsNamed) {
  EXPECT_THAT(refused(R"({"model":"m"})"), HasSubstr("input"));
  EXPECT_THAT(refused(R"({"input":[]})"), HasSubstr("input"));
  EXPECT_THAT(refused(R"({"input":[{}]})"), HasSubstr("input"));
  EXPECT_THAT(refused(R"({"input":[999]})"), HasSubstr("input"));
  EXPECT_THAT(refused(R"({"input":"a","dimensions":8})"), HasSubstr("dimensions"));
  EXPECT_THAT(refused(R"({"input":"a","encoding_format":"hex"})"), HasSubstr("encoding_format"));
  EXPECT_THAT(refused(R"({"input":"a","pooling":"cls"})"), HasSubstr("pooling"));
  EXPECT_THAT(refused(R"({"input":"aaaaaaaaaaaaaaaaaaaaaaaaaa"})"), HasSubstr("context_length_exceeded"));
}

TEST_F(EmbeddingsTest, AnEngineThatCannotSaysSo) {
  Reply reply = ask(R"({"input":"a"})");
  auto& generation = std::get<GenerationReply>(reply.content);
  const HttpResponse response =
      generation.writer->error(api_error(fail(Errc::unsupported, "this model gives no hidden states")));
  EXPECT_EQ(response.status, 400);
  EXPECT_THAT(response.body, HasSubstr("hidden states"));
}

}  // namespace
}  // namespace pinion
