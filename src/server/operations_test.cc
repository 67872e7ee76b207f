// What operators rely on, over real sockets: metrics under three sets of names, rate limits, the access log, traces,
// time limits, models that come and go.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "server/api.h"
#include "server/responses.h"
#include "server/server_fixture.h"

namespace pinion {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::string complete = R"({"prompt":"ab","max_tokens":16})";

struct OperationsTest : ServerTest {
  std::string metrics() {
    Client client(server->metrics_port());
    client.send(get("/metrics"));
    return client.answer().body;
  }
};

TEST_F(OperationsTest, MetricsPortHasTheNamesOfTritonAndVllm) {
  options.metrics_port = 0;
  generator.max_queue = 1;
  start();
  EXPECT_EQ(ask(post("/v1/completions", complete)).status, 200);
  EXPECT_EQ(ask(post("/v2/models/m/generate", R"({"text_input":"a","max_tokens":9})")).status, 200);
  generator.hold = true;  // the first of two stays in the queue, which holds one
  EXPECT_EQ(ask(post("/v1/completions", R"({"prompt":"ab","n":2,"temperature":1})")).status, 429);
  generator.hold = false;
  EXPECT_TRUE(soon([&] { return generator.stats().running == 0; }));
  const std::string text = metrics();
  for (const char* line :
       {R"(nv_inference_request_success{model="m",version="1"} 2)",
        R"(nv_inference_request_failure{model="m",reason="REJECTED",version="1"} 1)",
        R"(nv_inference_queue_duration_us{model="m",version="1"} 6000000)",
        R"(nv_inference_compute_input_duration_us{model="m",version="1"} 2000000)",
        R"(nv_inference_compute_output_duration_us{model="m",version="1"} 1000000)",
        R"(nv_trt_llm_kv_cache_block_used{model="m",version="1"} 0)",
        R"(nv_trt_llm_active_request_count{model="m",version="1"} 0)", "# TYPE nv_gpu_utilization gauge",
        "nv_gpu_memory_used_bytes{gpu_uuid=", R"(vllm:num_requests_waiting{model_name="m",engine="0"} 0)",
        R"(vllm:request_success_total{finished_reason="stop",model_name="m",engine="0"} 2)",
        R"(pinion_request_success_total{finished_reason="stop",model_name="m"} 2)"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  Client other(server->metrics_port());
  other.send(get("/v1/models"));
  EXPECT_EQ(other.answer().status, 404);
}

TEST_F(OperationsTest, KserveStatisticsSayWhereTheTimeWent) {
  start();
  EXPECT_EQ(ask(post("/v2/models/m/generate", R"({"text_input":"a","max_tokens":5})")).status, 200);
  const Json stats = ask(get("/v2/models/m/stats")).json()["model_stats"][0]["inference_stats"];
  EXPECT_EQ(stats["queue"]["ns"], 3'000'000'000);
  EXPECT_EQ(stats["compute_input"]["ns"], 1'000'000'000);
  EXPECT_EQ(stats["compute_output"]["ns"], 500'000'000);
}

TEST(RateLimiter, RefillsEvenlyAndTakesTokensAfterwards) {
  const RateLimiter::Clock::time_point t0{};
  RateLimiter limiter(
      {{.key = "a", .name = {}, .requests_per_minute = 2}, {.key = "b", .name = {}, .tokens_per_minute = 60}}, t0);
  EXPECT_EQ(limiter.find("Bearer a"), 0);
  EXPECT_EQ(limiter.find("Bearer ab"), -1);
  EXPECT_EQ(limiter.find("a"), -1);
  EXPECT_EQ(limiter.admit(0, t0), 0);
  EXPECT_EQ(limiter.admit(0, t0), 0);
  EXPECT_EQ(limiter.admit(0, t0), 30);
  EXPECT_EQ(limiter.admit(0, t0 + 30s), 0);
  EXPECT_EQ(limiter.admit(1, t0), 0);
  limiter.charge(1, 69, t0);  // nine more than there are
  EXPECT_EQ(limiter.admit(1, t0), 10);
  EXPECT_EQ(limiter.admit(1, t0 + 10s), 0);
}

TEST_F(OperationsTest, RateLimitAnswers429WithTheTimeToWait) {
  options.api_keys = {{.key = "k", .name = "team", .requests_per_minute = 1, .priority = 5}};
  start();
  const std::string key = "Authorization: Bearer k\r\n";
  EXPECT_EQ(ask(post("/v1/completions", complete, key)).status, 200);
  EXPECT_EQ(generator.last_request.priority, 5);
  const auto refused = ask(post("/v1/completions", complete, key));
  EXPECT_EQ(refused.status, 429);
  EXPECT_THAT(refused.head, HasSubstr("Retry-After: "));
  EXPECT_EQ(refused.json()["error"]["code"], "rate_limit_exceeded");
  EXPECT_EQ(ask(get("/v1/models", key)).status, 200);  // only what generates counts
}

TEST_F(OperationsTest, AccessLogAndTrace) {
  const auto path = std::filesystem::temp_directory_path() / ("pinion-access-" + std::to_string(::getpid()));
  options.access_log = path;
  start();
  const std::string trace = "0af7651916cd43dd8448eb211c80319c";
  const auto answer = ask(
      post("/v1/completions", complete, "X-Request-Id: r1\r\ntraceparent: 00-" + trace + "-b7ad6b7169203331-01\r\n"));
  EXPECT_THAT(answer.head, HasSubstr("traceparent: 00-" + trace));
  EXPECT_THAT(answer.head, Not(HasSubstr("b7ad6b7169203331")));  // our span, not the caller's
  EXPECT_THAT(ask(get("/health", "traceparent: 00-xyz\r\n")).head, Not(HasSubstr("traceparent")));
  server.reset();
  // A record is written behind its answer, so that two connections' may come in either order.
  std::ifstream file(path);
  std::map<std::string, Json> records;
  for (std::string line; std::getline(file, line);) {
    Json record = Json::parse(line);
    const std::string route = record["route"];
    EXPECT_TRUE(records.emplace(route, std::move(record)).second) << route;
  }
  ASSERT_EQ(records.size(), 2u);
  EXPECT_TRUE(records.contains("/health"));
  Json& record = records["/v1/completions"];
  EXPECT_EQ(record["request_id"], "r1");
  EXPECT_EQ(record["trace_id"], trace);
  EXPECT_EQ(record["model"], "m");
  EXPECT_EQ(record["status"], 200);
  EXPECT_EQ(record["output_tokens"], 5);
  std::filesystem::remove(path);
}

TEST_F(OperationsTest, ARequestThatTakesTooLongIsToldSo) {
  options.request_timeout = 50ms;
  generator.hold = true;
  start();
  const auto late = ask(post("/v1/completions", complete));
  EXPECT_EQ(late.status, 504);
  EXPECT_EQ(late.json()["error"]["code"], "request_timeout");
  EXPECT_TRUE(soon([&] { return generator.stats().requests_cancelled == 1; }));
}

TEST_F(OperationsTest, TlsFilesThatAreWrongAreNamed) {
  options.tls_certificate = "/nonexistent.pem";
  EXPECT_THAT(Server::start(options, model).error().message, HasSubstr("give both"));
  options.tls_key = "/nonexistent.pem";
  EXPECT_THAT(Server::start(options, model).error().message, HasSubstr("certificate"));
}

struct TwoModels : ModelSource {
  ModelService service;
  std::set<std::string> broken;
  std::vector<std::string> names() override { return {"a", "b"}; }
  Result<LoadedModel> load(const std::string& name) override {
    if (broken.contains(name)) return fail(Errc::corrupt, "the engine is damaged", name);
    LoadedModel out{.service = service, .version = "3", .owner = nullptr};
    out.service.name = name;
    return out;
  }
};

TEST_F(OperationsTest, ModelsComeAndGo) {
  TwoModels source;
  source.service = model;
  source.broken = {"b"};
  auto started = Server::start(options, source);
  ASSERT_TRUE(started.ok());
  server = std::move(*started);
  server->load_models();
  const auto states = [&] {
    std::string out;
    for (const Json& m : ask(post("/v2/repository/index", "")).json())
      out += m["name"].get<std::string>() + "=" + m["state"].get<std::string>() + " ";
    return out;
  };
  EXPECT_EQ(states(), "a=READY b=UNAVAILABLE ");
  EXPECT_EQ(ask(get("/v2/health/ready")).status, 400);  // a model that should be there is not
  source.broken.clear();
  EXPECT_EQ(ask(post("/v2/repository/models/b/load", "{}")).status, 200);
  EXPECT_EQ(ask(get("/v2/health/ready")).status, 200);
  EXPECT_EQ(ask(get("/v2/models/b/versions/3/ready")).status, 200);
  EXPECT_EQ(ask(get("/v1/models")).json()["data"].size(), 2);
  EXPECT_EQ(ask(post("/v1/completions", complete)).json()["error"]["param"], "model");
  EXPECT_EQ(ask(post("/v1/completions", R"({"prompt":"ab","model":"b"})")).json()["model"], "b");
  EXPECT_EQ(ask(post("/v2/repository/models/a/unload", "")).status, 200);
  EXPECT_EQ(states(), "a=UNAVAILABLE b=READY ");
  EXPECT_EQ(ask(get("/v2/models/a/ready")).status, 400);
  EXPECT_EQ(ask(get("/v2/models/any/ready")).status, 200);  // with one model any other name means it
  EXPECT_EQ(ask(post("/v2/repository/models/c/load", "")).status, 404);
  EXPECT_EQ(ask(post("/v2/repository/models/a/load", R"({"parameters":{"config":"{}"}})")).status, 501);
}

TEST_F(OperationsTest, ThePageIsOneFileThatLoadsNothingFromElsewhere) {
  options.api_keys = {{.key = "k"}};
  start();
  const auto page = ask(get("/"));
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.head, HasSubstr("Content-Type: text/html"));
  EXPECT_THAT(page.head, HasSubstr("Content-Security-Policy: default-src 'none'"));
  EXPECT_THAT(page.body, HasSubstr("/v1/chat/completions"));
  EXPECT_THAT(page.body, HasSubstr("</html>"));
  for (const char* foreign : {"http://", "https://", "src=", "@import", "url("}) {
    EXPECT_THAT(page.body, Not(HasSubstr(foreign)));
  }
}

TEST_F(OperationsTest, TokenIdsComeWithTheText) {
  start();
  const Json whole = ask(post("/v1/completions", R"({"prompt":"ab","return_token_ids":true})")).json()["choices"][0];
  EXPECT_EQ(whole["token_ids"], (Json{'h', 'e', 'l', 'l', 'o'}));
  EXPECT_EQ(whole["prompt_token_ids"], (Json{256, 'a', 'b'}));
  const std::string events =
      ask(post("/v1/completions", R"({"prompt":"ab","return_token_ids":true,"stream":true})")).body;
  EXPECT_THAT(events, HasSubstr(R"("token_ids":[104],"prompt_token_ids":[256,97,98])"));
  EXPECT_THAT(events, HasSubstr(R"("text":"o","logprobs":null,"token_ids":[111],"finish_reason":null)"));
}

TEST_F(OperationsTest, Responses) {
  start();
  const Json answer =
      ask(post("/v1/responses", R"({"input":"hi","instructions":"be short","max_output_tokens":3})")).json();
  EXPECT_EQ(answer["object"], "response");
  EXPECT_EQ(answer["status"], "incomplete");
  EXPECT_EQ(answer["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(answer["output"][0]["content"][0]["text"], "hel");
  EXPECT_EQ(answer["usage"]["output_tokens"], 3);
  std::string prompt;
  for (const int32_t id : generator.last_request.prompt) prompt += static_cast<char>(id);
  EXPECT_EQ(prompt, "system:be short\nuser:hi\nassistant:");

  const std::string events =
      ask(post("/v1/responses", R"({"input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]},
      {"type":"function_call","call_id":"c","name":"f","arguments":"{}"},
      {"type":"function_call_output","call_id":"c","output":"7"}],"stream":true})"))
          .body;
  size_t at = 0;
  for (const char* type : {"response.created", "response.in_progress", "response.output_item.added",
                           "response.content_part.added", "response.output_text.delta", "response.output_text.done",
                           "response.content_part.done", "response.output_item.done", "response.completed"}) {
    at = events.find("event: " + std::string(type) + "\n", at);
    ASSERT_NE(at, std::string::npos) << type << "\n" << events;
  }
  for (const auto& [body, param] : std::vector<std::pair<std::string, std::string>>{
           {R"({"input":"a","previous_response_id":"resp_1"})", "previous_response_id"},
           {R"({"input":"a","background":true})", "background"},
           {R"({"input":"a","tools":[{"type":"web_search"}]})", "tools[0]"},
           {R"({"input":[{"role":"user","content":[{"type":"input_image"}]}]})", "input[0].content[0]"},
           {R"({"input":[7]})", "input[0]"},
           {R"({"instructions":"a"})", "input"},
           {R"({"input":"a","text":{"format":{"type":"json_object"}}})", "response_format"}}) {
    EXPECT_EQ(ask(post("/v1/responses", body)).json()["error"]["param"], param) << body;
  }
}

}  // namespace
}  // namespace pinion
