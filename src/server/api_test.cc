// The parsing and the answers of the API, without a socket.
#include <gtest/gtest.h>

#include "server/completion_writer.h"
#include "server/fake_service.h"

namespace pinion {
namespace {

struct ApiTest : testing::Test {
  FakeText text;
  FakeGenerator generator;
  ModelService model{.generator = &generator, .text = &text, .name = "m", .max_seq_len = 100, .vocab_size = 257};

  ParsedCall chat(std::string_view fields, RequestLimits limits = {}) {
    return parse(
        R"({"messages":[{"role":"user","content":"hi"}])" + (fields.empty() ? "" : "," + std::string(fields)) + "}",
        true, limits);
  }
  ParsedCall completion(std::string_view fields, RequestLimits limits = {}) {
    return parse(R"({"prompt":"ab")" + (fields.empty() ? "" : "," + std::string(fields)) + "}", false, limits);
  }
  ParsedCall parse(const std::string& body, bool is_chat, RequestLimits limits = {}) {
    auto json = parse_ordered_json(body, "test");
    EXPECT_TRUE(json.ok()) << body;
    return is_chat ? parse_chat_call(*json, model, limits) : parse_completion_call(*json, model, limits);
  }
  static std::string param(const ParsedCall& call) {
    const auto* error = std::get_if<ApiError>(&call);
    return error ? error->param : "(accepted)";
  }
};

TEST_F(ApiTest, DefaultsOfTheTwoEndpoints) {
  const auto c = std::get<CompletionCall>(chat(""));
  EXPECT_EQ(text.decode(c.prompts[0], false), "user:hi\nassistant:");
  EXPECT_EQ(c.requests("x")[0].sampling.max_tokens, 100 - 18);
  EXPECT_EQ(c.requests("x")[0].sampling.temperature, 1);
  const auto t = std::get<CompletionCall>(completion(""));
  EXPECT_EQ(t.prompts[0], (std::vector<int32_t>{256, 'a', 'b'}));
  EXPECT_EQ(t.requests("x")[0].sampling.max_tokens, 16);
}

TEST_F(ApiTest, EveryBadFieldIsNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("max_tokens":0)", "max_tokens"},
      {R"("max_tokens":-1)", "max_tokens"},
      {R"("max_tokens":1.5)", "max_tokens"},
      {R"("max_tokens":"8")", "max_tokens"},
      {R"("max_tokens":2147483648)", "max_tokens"},
      {R"("max_tokens":18446744073709551615)", "max_tokens"},
      {R"("max_tokens":99)", "max_tokens"},
      {R"("n":0)", "n"},
      {R"("n":129)", "n"},
      {R"("best_of":0)", "best_of"},
      {R"("n":3,"best_of":2)", "best_of"},
      {R"("temperature":-1)", "temperature"},
      {R"("temperature":2.1)", "temperature"},
      {R"("temperature":"1")", "temperature"},
      {R"("top_p":0)", "top_p"},
      {R"("top_p":1.01)", "top_p"},
      {R"("min_p":-0.1)", "min_p"},
      {R"("top_k":-2)", "top_k"},
      {R"("top_k":2147483648)", "top_k"},
      {R"("presence_penalty":3)", "presence_penalty"},
      {R"("frequency_penalty":-3)", "frequency_penalty"},
      {R"("repetition_penalty":0)", "repetition_penalty"},
      {R"("stop":"")", "stop"},
      {R"("stop":[1])", "stop"},
      {R"("stop":{})", "stop"},
      {R"("seed":1.5)", "seed"},
      {R"("seed":18446744073709551615)", "seed"},
      {R"("logit_bias":{"-1":1})", "logit_bias"},
      {R"("logit_bias":{"257":1})", "logit_bias"},
      {R"("logit_bias":{"1":101})", "logit_bias"},
      {R"("logit_bias":[])", "logit_bias"},
      {R"("stream":"true")", "stream"},
      {R"("stream_options":{})", "stream_options"},
      {R"("stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage"},
      {R"("response_format":{})", "response_format"},
      {R"("response_format":{"type":"json_object"})", "response_format"},
      {R"("response_format":{"type":"x"})", "response_format"},
      {R"("model":3)", "model"},
      {R"("model":"other")", "model"},
      {R"("stop_token_ids":[257])", "stop_token_ids"},
      {R"("min_tokens":5,"max_tokens":4)", "min_tokens"},
      {R"("use_beam_search":true)", "use_beam_search"},
      {R"("spaces_between_special_tokens":false)", "spaces_between_special_tokens"},
  };
  for (const auto& [fields, name] : cases) {
    EXPECT_EQ(param(chat(fields)), name) << fields;
    EXPECT_EQ(param(completion(fields)), name) << fields;
  }
  EXPECT_EQ(std::get<ApiError>(chat(R"("model":"other")")).status, 404);
  EXPECT_EQ(param(chat(R"("top_logprobs":2)")), "top_logprobs");
  EXPECT_EQ(param(chat(R"("logprobs":true,"top_logprobs":21)")), "top_logprobs");
  EXPECT_EQ(param(chat(R"("logprobs":1)")), "logprobs");
  EXPECT_EQ(param(completion(R"("logprobs":21)")), "logprobs");
  EXPECT_EQ(param(completion(R"("suffix":"x")")), "suffix");
  EXPECT_EQ(param(chat(R"("tool_choice":"required","tools":[{"type":"function","function":{"name":"f"}}])")),
            "tool_choice");
  EXPECT_EQ(param(chat(R"("tools":[{"type":"function"}])")), "tools[0]");
  EXPECT_EQ(param(chat(R"("chat_template_kwargs":{"tokenize":1})")), "chat_template_kwargs");
  EXPECT_EQ(param(chat(R"("chat_template":"{{ 1 }}")")), "chat_template");
}

TEST_F(ApiTest, EveryFieldWithEveryJsonTypeIsAcceptedOrRefused) {
  const char* names[] = {"model",
                         "max_tokens",
                         "max_completion_tokens",
                         "n",
                         "best_of",
                         "temperature",
                         "top_p",
                         "top_k",
                         "min_p",
                         "stop",
                         "stream",
                         "stream_options",
                         "logprobs",
                         "top_logprobs",
                         "echo",
                         "suffix",
                         "logit_bias",
                         "seed",
                         "user",
                         "tools",
                         "tool_choice",
                         "response_format",
                         "messages",
                         "prompt",
                         "bad_words",
                         "chat_template_kwargs",
                         "reasoning_effort",
                         "stop_token_ids",
                         "priority",
                         "cache_salt",
                         "add_special_tokens",
                         "modalities",
                         "parallel_tool_calls",
                         "min_tokens"};
  const char* values[] = {"null",
                          "true",
                          "false",
                          "0",
                          "-1",
                          "1",
                          "1.5",
                          "1e308",
                          "9223372036854775808",
                          "\"\"",
                          "\"x\"",
                          "[]",
                          "[1]",
                          "[-1]",
                          "[[]]",
                          "[[1]]",
                          "[[[1]]]",
                          "[\"\"]",
                          "[\"a\",1]",
                          "[null]",
                          "{}",
                          "{\"a\":1}",
                          "[{}]",
                          "{\"type\":null}",
                          "[{\"role\":1}]",
                          "[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]",
                          "[{\"role\":\"assistant\",\"tool_calls\":[{}]}]"};
  for (const std::string name : names) {
    for (const std::string value : values) {
      const std::string field = "\"" + name + "\":" + value;
      const std::string rest = name == "prompt" ? "" : R"("prompt":"a",)";
      const std::string chat_rest = name == "messages" ? "" : R"("messages":[{"role":"user","content":"a"}],)";
      for (const bool is_chat : {true, false}) {
        const ParsedCall call = parse("{" + (is_chat ? chat_rest : rest) + field + "}", is_chat);
        if (const auto* error = std::get_if<ApiError>(&call)) {
          EXPECT_TRUE(error->status == 400 || error->status == 404) << field;
          EXPECT_NE(error->param, "") << field;
        }
      }
    }
  }
}

TEST_F(ApiTest, PromptForms) {
  const auto prompts = [&](std::string_view prompt) {
    const ParsedCall call = parse("{\"prompt\":" + std::string(prompt) + "}", false);
    const auto* accepted = std::get_if<CompletionCall>(&call);
    return accepted ? accepted->prompts : std::vector<std::vector<int32_t>>{};
  };
  using Prompts = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(prompts(R"(["a","b"])"), (Prompts{{256, 'a'}, {256, 'b'}}));
  EXPECT_EQ(prompts("[1,2]"), (Prompts{{1, 2}}));
  EXPECT_EQ(prompts("[[1],[2,3]]"), (Prompts{{1}, {2, 3}}));
  for (const auto* bad : {"\"\"", "[]", "[[]]", "[-1]", "[257]", "[2147483648]", "[1,\"a\"]", "[\"a\",1]",
                          "[[1],\"a\"]", "[[[[[1]]]]]", "3", "{}", "null"}) {
    EXPECT_EQ(prompts(bad), Prompts{}) << bad;
    EXPECT_EQ(param(parse("{\"prompt\":" + std::string(bad) + "}", false)), "prompt") << bad;
  }
  const auto long_prompt = std::get<ApiError>(parse("{\"prompt\":\"" + std::string(200, 'a') + "\"}", false));
  EXPECT_EQ(long_prompt.code, "context_length_exceeded");
  EXPECT_NE(long_prompt.message.find("201"), std::string::npos) << long_prompt.message;
  EXPECT_NE(long_prompt.message.find("100"), std::string::npos) << long_prompt.message;
}

TEST_F(ApiTest, MessageContentForms) {
  const auto rendered = [&](std::string_view messages) {
    const ParsedCall call = parse("{\"messages\":" + std::string(messages) + "}", true);
    if (const auto* error = std::get_if<ApiError>(&call)) return "error " + error->param;
    return text.decode(std::get<CompletionCall>(call).prompts[0], false);
  };
  EXPECT_EQ(rendered(R"([{"role":"developer","content":[{"type":"text","text":"a"},"b"]}])"),
            "system:a\nb\nassistant:");
  EXPECT_EQ(rendered("[]"), "error messages");
  EXPECT_EQ(rendered(R"([{"content":"a"}])"), "error messages[0].role");
  EXPECT_EQ(rendered(R"([{"role":"robot","content":"a"}])"), "error messages[0].role");
  EXPECT_EQ(rendered(R"([{"role":"user","content":null}])"), "error messages[0].content");
  EXPECT_EQ(rendered(R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}])"),
            "error messages[0].content[0]");
  EXPECT_EQ(rendered(R"([{"role":"user","content":"raise"}])"), "error messages");
}

TEST_F(ApiTest, UnknownFieldsAreIgnoredUnlessStrict) {
  EXPECT_EQ(param(chat(R"("frobnicate":1)")), "(accepted)");
  EXPECT_EQ(param(chat(R"("frobnicate":1)", {.strict_fields = true})), "frobnicate");
  EXPECT_EQ(param(chat(R"("user":"u","temperature":0)", {.strict_fields = true})), "(accepted)");
}

TEST_F(ApiTest, SeedsOfChoicesDiffer) {
  const auto requests = std::get<CompletionCall>(completion(R"("n":2,"seed":5)")).requests("x");
  EXPECT_EQ(requests[0].sampling.seed, 5U);
  EXPECT_EQ(requests[1].sampling.seed, 6U);
}

TEST_F(ApiTest, BestOfTakesTheMostProbable) {
  CompletionWriter writer(std::get<CompletionCall>(completion(R"("best_of":3)")), model, "id", 1);
  std::string out;
  const auto piece = [](std::string s, float logprob) {
    return OutputPiece{.tokens = {s[0]},
                       .text = s,
                       .logprobs = {{.token = s[0], .logprob = logprob}},
                       .finish = FinishReason::stop,
                       .output_tokens = 1};
  };
  writer.add(0, piece("x", -2), out);
  writer.add(1, piece("y", -1), out);
  EXPECT_FALSE(writer.done());
  writer.add(2, piece("z", -3), out);
  EXPECT_TRUE(writer.done());
  EXPECT_EQ(out, "");
  const auto body = *parse_json(writer.response().body, "test");
  ASSERT_EQ(body["choices"].size(), 1U);
  EXPECT_EQ(body["choices"][0]["text"], "y");
  EXPECT_EQ(body["choices"][0]["logprobs"], nullptr);
  EXPECT_EQ(body["usage"]["completion_tokens"], 3);
}

}  // namespace
}  // namespace pinion
