// The server over real sockets: what a client sees, byte for byte, and what happens when clients misbehave.
#include "server/server.h"

#include <gtest/gtest.h>

#include <future>

#include "server/server_fixture.h"

namespace pinion {
namespace {

constexpr const char* chat_path = "/v1/chat/completions";
const std::string hi = R"({"messages":[{"role":"user","content":"hi"}]})";
const std::string hi_stream =
    R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}})";

TEST_F(ServerTest, Chat) {
  start();
  const auto answer = ask(post(chat_path, hi, "X-Request-Id: r1\r\n"));
  EXPECT_EQ(answer.status, 200);
  EXPECT_NE(answer.head.find("X-Request-Id: r1\r\n"), std::string::npos);
  Json body = answer.json();
  EXPECT_GT(body["created"], 1'700'000'000);
  body["created"] = 0;
  EXPECT_EQ(body, Json::parse(R"({"id":"chatcmpl-r1","object":"chat.completion","created":0,"model":"m",
    "system_fingerprint":null,"choices":[{"index":0,"message":{"role":"assistant","content":"hello","refusal":null},
    "logprobs":null,"finish_reason":"stop","stop_reason":null}],"usage":{"prompt_tokens":18,"completion_tokens":5,
    "total_tokens":23,"prompt_tokens_details":{"cached_tokens":0}}})"));
}

TEST_F(ServerTest, ChatStreamIsExact) {
  generator.script = "ok";
  start();
  const auto answer = ask(post(chat_path, hi_stream, "X-Request-Id: r1\r\n"));
  EXPECT_EQ(answer.status, 200);
  EXPECT_NE(answer.head.find("Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"),
            std::string::npos);
  std::string body = answer.body;
  const size_t at = body.find("\"created\":") + 10;
  const std::string created = body.substr(at, body.find(',', at) - at);
  const std::string head = R"(data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":)" + created +
                           R"(,"model":"m","system_fingerprint":null,"choices":[)";
  const auto delta = [&](std::string_view d, std::string_view rest) {
    return head + R"({"index":0,"delta":)" + std::string(d) + R"(,"logprobs":null,"finish_reason":)" +
           std::string(rest) + "}],\"usage\":null}\n\n";
  };
  EXPECT_EQ(body, delta(R"({"role":"assistant","content":""})", "null") + delta(R"({"content":"o"})", "null") +
                      delta(R"({"content":"k"})", "null") + delta("{}", R"("stop","stop_reason":null)") + head +
                      R"(],"usage":{"prompt_tokens":18,"completion_tokens":2,"total_tokens":20,)"
                      R"("prompt_tokens_details":{"cached_tokens":0}}})"
                      "\n\ndata: [DONE]\n\n");
}

TEST_F(ServerTest, ChatLogprobsAndChoices) {
  generator.script = "a";
  start();
  const auto body =
      ask(post(chat_path, R"({"messages":[{"role":"user","content":"x"}],"n":2,"logprobs":true,"top_logprobs":1})"))
          .json();
  ASSERT_EQ(body["choices"].size(), 2U);
  EXPECT_EQ(body["choices"][1]["logprobs"], Json::parse(R"({"content":[{"token":"a","logprob":-0.5,"bytes":[97],
      "top_logprobs":[{"token":"a","logprob":-0.5,"bytes":[97]}]}],"refusal":null})"));
  EXPECT_EQ(body["usage"]["completion_tokens"], 2);
}

TEST_F(ServerTest, ToolCalls) {
  generator.script = "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}}</tool_call>";
  start();
  const std::string tools = R"(,"tools":[{"type":"function","function":{"name":"f","parameters":{}}}])";
  std::string request = hi;
  request.insert(request.size() - 1, tools);
  auto choice = ask(post(chat_path, request, "X-Request-Id: r\r\n")).json()["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_EQ(choice["message"]["content"], nullptr);
  EXPECT_EQ(choice["message"]["tool_calls"], Json::parse(R"([{"id":"call_chatcmpl-r_0_0","type":"function",
      "function":{"name":"f","arguments":"{\"a\":1}"}}])"));
  request.insert(request.size() - 1, R"(,"stream":true)");
  const std::string body = ask(post(chat_path, request)).body;
  EXPECT_NE(body.find(R"("tool_calls":[{"index":0,"id":"call_)"), std::string::npos) << body;
  EXPECT_NE(body.find(R"("finish_reason":"tool_calls")"), std::string::npos) << body;
  text.tools = false;
  EXPECT_EQ(ask(post(chat_path, request)).json()["error"]["param"], "tools");
}

TEST_F(ServerTest, Completions) {
  generator.script = "cd";
  start();
  auto body = ask(post("/v1/completions", R"({"prompt":["ab",  "x"],"echo":true,"logprobs":1,"n":2})")).json();
  ASSERT_EQ(body["choices"].size(), 4U);
  EXPECT_EQ(body["choices"][2]["index"], 2);
  EXPECT_EQ(body["choices"][2]["text"], "xcd");
  EXPECT_EQ(body["choices"][0]["logprobs"], Json::parse(R"({"tokens":["<s>","a","b","c","d"],
    "token_logprobs":[null,-0.5,-0.5,-0.5,-0.5],"top_logprobs":[null,{"a":-0.5},{"b":-0.5},{"c":-0.5},{"d":-0.5}],
    "text_offset":[0,3,4,5,6]})"));
  body = ask(post("/v1/completions", R"({"prompt":[97,98],"max_tokens":0,"echo":true,"logprobs":0})")).json();
  EXPECT_EQ(body["choices"][0]["text"], "ab");
  EXPECT_EQ(body["choices"][0]["logprobs"]["tokens"], Json::parse(R"(["a","b"])"));
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["usage"]["completion_tokens"], 0);
  body = ask(post("/v1/completions", R"({"prompt":"a","max_tokens":1})")).json();
  EXPECT_EQ(body["choices"][0]["text"], "c");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  const std::string stream = ask(post("/v1/completions", R"({"prompt":"a","stream":true,"echo":true})")).body;
  EXPECT_NE(stream.find(R"("text":"a","logprobs":null,"finish_reason":null)"), std::string::npos) << stream;
  EXPECT_TRUE(stream.ends_with("data: [DONE]\n\n")) << stream;
}

TEST_F(ServerTest, OtherEndpoints) {
  start();
  EXPECT_EQ(ask(get("/v1/models")).json()["data"][0]["id"], "m");
  EXPECT_EQ(ask(get("/v1/models/m")).json()["max_model_len"], 100'000);
  EXPECT_EQ(ask(get("/v1/models/%6d")).status, 200);
  EXPECT_EQ(ask(get("/v1/models/other")).status, 404);
  EXPECT_EQ(ask(post("/tokenize", R"({"prompt":"ab","return_token_strs":true})")).json(),
            Json::parse(R"({"count":3,"max_model_len":100000,"tokens":[256,97,98],"token_strs":["<s>","a","b"]})"));
  EXPECT_EQ(ask(post("/tokenize", hi)).json()["count"], 18);
  EXPECT_EQ(ask(post("/detokenize", R"({"tokens":[97,98]})")).json()["prompt"], "ab");
  EXPECT_EQ(ask(post("/detokenize", R"({"tokens":[300]})")).json()["error"]["param"], "tokens");
  EXPECT_EQ(ask(get("/health")).status, 200);
  EXPECT_EQ(ask(get("/version")).status, 200);
  const auto metrics = ask(get("/metrics?x=1"));
  EXPECT_NE(metrics.head.find("Content-Type: text/plain; version=0.0.4; charset=utf-8"), std::string::npos);
  for (const auto* name :
       {"pinion_num_requests_waiting{model_name=\"m\"} 0", "# TYPE pinion_time_to_first_token_seconds histogram",
        "pinion_http_requests_total{route=\"/health\",status=\"200\"} 1"}) {
    EXPECT_NE(metrics.body.find(name), std::string::npos) << name << "\n" << metrics.body;
  }
}

TEST_F(ServerTest, HttpErrors) {
  options.max_body_bytes = 1000;
  options.max_headers = 10;
  options.header_timeout = 300ms;
  start();
  const auto status = [&](const std::string& bytes) { return ask(bytes).status; };
  EXPECT_EQ(status(get("/nothing")), 404);
  EXPECT_EQ(status(get(chat_path)), 405);
  EXPECT_EQ(status(get("/health", "", "DELETE")), 405);
  EXPECT_EQ(status(get(chat_path, "", "OPTIONS")), 204);
  EXPECT_EQ(status("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"), 415);
  EXPECT_EQ(status(post(chat_path, hi, "Content-Encoding: gzip\r\n")), 415);
  EXPECT_EQ(status(post(chat_path, std::string(1001, ' '))), 413);
  EXPECT_EQ(status(post(chat_path, "{")), 400);
  EXPECT_EQ(status(post(chat_path, "[]")), 400);
  EXPECT_EQ(status(post(chat_path, "")), 400);
  EXPECT_EQ(status(post(chat_path, "{\"prompt\":\"\xff\"}")), 400);
  EXPECT_EQ(status(post(chat_path, std::string(900, '['))), 400);
  EXPECT_EQ(status(get("/" + std::string(9000, 'a'))), 414);
  EXPECT_EQ(status(get("/health", "A: " + std::string(40'000, 'a') + "\r\n")), 431);
  std::string many;
  for (int i = 0; i < 20; ++i) many += "A" + std::to_string(i) + ": 1\r\n";
  EXPECT_EQ(status(get("/health", many)), 431);
  EXPECT_EQ(status("GET /health HTTP/1.1\r\n\r\n"), 400);  // no Host
  EXPECT_EQ(status(get("/health", "Host: y\r\n")), 400);   // two
  EXPECT_EQ(status("nonsense\r\n\r\n"), 400);
  EXPECT_EQ(status(get("/health", "A : 1\r\n")), 400);
  const std::string tail = "\r\n0\r\n\r\n";
  for (const std::string smuggled :
       {"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n", "Content-Length: +5\r\n", "Content-Length: -1\r\n",
        "Content-Length: 0x5\r\n", "Content-Length: 18446744073709551616\r\n", "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n", "Transfer-Encoding: identity\r\n"}) {
    Client client(server->port());
    client.send("POST /tokenize HTTP/1.1\r\nHost: x\r\n" + smuggled + tail);
    EXPECT_EQ(client.answer().status, 400) << smuggled;
    EXPECT_TRUE(client.closed_by_server()) << smuggled;
  }
  for (const std::string chunk : {"-2\r\nab\r\n", "FFFFFFFFFFFFFFFF\r\nab", "FFFFFFFFFFFFFFFFF\r\nab", "zz\r\n"}) {
    const int got = status("POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk);
    EXPECT_TRUE(got == 400 || got == 413) << chunk << got;
  }
  Client slow(server->port());
  slow.send("GET /health HT");
  EXPECT_TRUE(slow.closed_by_server());
  const auto head = ask(get("/health", "Connection: close\r\n", "HEAD"));
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(status(get("/health")), 200);
}

std::vector<Json> events(const std::string& body) {
  std::vector<Json> out;
  constexpr std::string_view begin = "data: {";
  for (size_t at = body.find(begin); at != std::string::npos; at = body.find(begin, at + 1)) {
    out.push_back(Json::parse(body.substr(at + begin.size() - 1, body.find('\n', at) - at - begin.size() + 1)));
  }
  return out;
}

TEST_F(ServerTest, ReasoningIsSplitFromTheAnswer) {
  text.reasoning = true;
  generator.script = "<think>\nOne and one.\n</think>\n\nTwo.";
  start();
  const std::string request = R"({"messages":[{"role":"user","content":"1+1?"}],"max_tokens":100)";
  const auto message = ask(post(chat_path, request + "}")).json()["choices"][0]["message"];
  EXPECT_EQ(message["reasoning_content"], "One and one.");
  EXPECT_EQ(message["content"], "Two.");
  std::string reasoning, content;
  for (const auto& event : events(ask(post(chat_path, request + R"(,"stream":true})")).body)) {
    const auto& delta = event["choices"][0]["delta"];
    if (delta.contains("reasoning_content")) reasoning += delta["reasoning_content"].get<std::string>();
    if (delta.contains("content")) content += delta["content"].get<std::string>();
  }
  EXPECT_EQ(reasoning, "One and one.");
  EXPECT_EQ(content, "Two.");
}

TEST_F(ServerTest, ErrorObject) {
  start();
  EXPECT_EQ(
      ask(post(chat_path, R"({"messages":[]})")).body,
      R"({"error":{"message":"'messages': empty","type":"invalid_request_error","param":"messages","code":"invalid_value"}})");
  EXPECT_EQ(ask(post(chat_path, R"({"model":"x"})")).json()["error"]["code"], "model_not_found");
}

TEST_F(ServerTest, KeepAlivePipeliningChunkedAndExpect) {
  start();
  Client client(server->port());
  std::string many;
  for (int i = 0; i < 50; ++i) many += i % 2 ? get("/v1/models") : post("/tokenize", R"({"prompt":"ab"})");
  client.send(many);
  for (int i = 0; i < 50; ++i) {
    const auto answer = client.answer();
    ASSERT_EQ(answer.status, 200) << i;
    ASSERT_EQ(answer.json().contains("data"), i % 2 == 1) << i;
  }
  client.send(post(chat_path, hi) + get("/v1/models"));  // the second waits while the first is generated
  EXPECT_EQ(client.answer().json()["choices"][0]["message"]["content"], "hello");
  EXPECT_EQ(client.answer().status, 200);
  client.send(
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; charset=utf-8\r\n"
      "Transfer-Encoding: chunked\r\n\r\n7\r\n{\"promp\r\n8;x=1\r\nt\":\"ab\"}\r\n0\r\n\r\n");
  EXPECT_EQ(client.answer().json()["count"], 3);
  client.send(
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: "
      "15\r\n\r\n");
  EXPECT_EQ(client.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send(R"({"prompt":"ab"})");
  EXPECT_EQ(client.answer().status, 200);
  client.send(get("/health", "Connection: close\r\n"));
  EXPECT_EQ(client.answer().status, 200);
  EXPECT_TRUE(client.closed_by_server());
}

TEST_F(ServerTest, Http10StreamsUntilClose) {
  start();
  Client client(server->port());
  client.send("POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: " +
              std::to_string(hi_stream.size()) + "\r\n\r\n" + hi_stream);
  const std::string all = client.read_all();
  EXPECT_EQ(all.find("chunked"), std::string::npos);
  EXPECT_TRUE(all.ends_with("data: [DONE]\n\n")) << all;
}

TEST_F(ServerTest, KeysAreChecked) {
  options.api_keys = {{.key = "one", .name = {}}, {.key = "secret", .name = {}}};
  start();
  EXPECT_EQ(ask(get("/health")).status, 200);
  EXPECT_EQ(ask(get("/metrics")).status, 200);
  for (const auto* header : {"", "Authorization: Bearer\r\n", "Authorization: Bearer secre\r\n",
                             "Authorization: Bearer secretX\r\n", "Authorization: secret\r\n"}) {
    EXPECT_EQ(ask(get("/v1/models", header)).status, 401) << header;
    EXPECT_EQ(ask(post(chat_path, hi, header)).status, 401) << header;
    EXPECT_EQ(ask(post("/tokenize", hi, header)).status, 401) << header;
  }
  EXPECT_EQ(ask(post(chat_path, hi, "Authorization: Bearer secret\r\n")).status, 200);
}

TEST_F(ServerTest, FullQueueIs429) {
  generator.hold = true;
  generator.max_queue = 3;
  start();
  Client waiting(server->port());
  waiting.send(post(chat_path, hi));
  ASSERT_TRUE(soon([&] { return generator.submitted == 1; }));
  const auto refused = ask(post("/v1/completions", R"({"prompt":"a","n":3})"));
  EXPECT_EQ(refused.status, 429);
  EXPECT_NE(refused.head.find("Retry-After: 1\r\n"), std::string::npos);
  EXPECT_EQ(refused.json()["error"]["type"], "rate_limit_error");
  EXPECT_TRUE(soon([&] { return generator.stats().running == 1; }));  // the two that fitted were taken back
  generator.hold = false;
  EXPECT_EQ(waiting.answer().status, 200);
}

TEST_F(ServerTest, DisconnectCancels) {
  generator.endless = true;
  generator.step = 1ms;
  start();
  uint64_t cancelled = 0;
  for (const std::string& body : {hi, hi_stream}) {
    for (const std::string extra : {std::string(), get("/v1/models")}) {  // also with a pipelined request behind it
      for (const bool half : {false, true}) {
        Client client(server->port());
        client.send(post(chat_path, body) + extra);
        ASSERT_TRUE(soon([&] { return generator.stats().running == 1; }));
        if (body == hi_stream) client.read_until("data: ");
        half ? client.half_close() : client.close();
        EXPECT_TRUE(soon([&] { return generator.stats().running == 0; }, 200ms)) << body << extra << half;
        EXPECT_EQ(generator.stats().requests_cancelled, ++cancelled);
      }
    }
  }
  generator.endless = false;
  EXPECT_TRUE(soon([&] {
    return ask(get("/metrics")).body.find("pinion_client_disconnects_total{model_name=\"m\"} 8") != std::string::npos;
  }));
  EXPECT_EQ(ask(post(chat_path, hi)).status, 200);
}

TEST_F(ServerTest, SlowReaderIsCutOff) {
  generator.endless = true;
  options.max_output_bytes = 64 << 10;
  start();
  Client client(server->port(), 4096);
  client.send(
      post(chat_path,
           R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"n":32,"logprobs":true,"top_logprobs":20})"));
  ASSERT_TRUE(soon([&] { return generator.submitted == 32; }));
  EXPECT_TRUE(soon([&] { return generator.stats().requests_cancelled == 32; }));
  EXPECT_EQ(ask(get("/health")).status, 200);
}

TEST_F(ServerTest, EngineErrors) {
  generator.fail_after = 0;
  start();
  EXPECT_EQ(ask(post(chat_path, hi)).status, 500);
  EXPECT_EQ(ask(post(chat_path, hi_stream)).status, 500);  // nothing was sent yet: a status still can be
  generator.fail_after = 2;
  const auto answer = ask(post(chat_path, hi_stream));
  EXPECT_EQ(answer.status, 200);
  EXPECT_NE(answer.body.find("data: {\"error\":{\"message\":"), std::string::npos) << answer.body;
  EXPECT_EQ(answer.body.find("[DONE]"), std::string::npos) << answer.body;
  generator.dead = true;
  EXPECT_EQ(ask(post(chat_path, hi)).status, 503);
  EXPECT_EQ(ask(get("/health")).status, 503);
}

TEST_F(ServerTest, NotReadyUntilTold) {
  options.ready = false;
  start();
  EXPECT_EQ(ask(get("/health")).status, 200);
  EXPECT_EQ(ask(get("/health/ready")).status, 503);
  EXPECT_EQ(ask(post(chat_path, hi)).status, 503);
  server->set_ready(true);
  EXPECT_EQ(ask(get("/health/ready")).status, 200);
  EXPECT_EQ(ask(post(chat_path, hi)).status, 200);
}

TEST_F(ServerTest, DrainFinishesWhatItTook) {
  generator.hold = true;
  start();
  Client streaming(server->port()), waiting(server->port());
  streaming.send(post(chat_path, hi_stream));
  waiting.send(post(chat_path, hi));
  ASSERT_TRUE(soon([&] { return generator.submitted == 2; }));
  auto drained = std::async(std::launch::async, [&] { server->drain(); });
  EXPECT_TRUE(soon([&] { return ask(get("/health/ready")).status == 503; }));
  const auto refused = ask(post(chat_path, hi));
  EXPECT_EQ(refused.status, 503);
  EXPECT_NE(refused.head.find("Retry-After"), std::string::npos);
  EXPECT_EQ(ask(get("/health")).status, 200);
  generator.hold = false;
  EXPECT_EQ(waiting.answer().json()["choices"][0]["message"]["content"], "hello");
  EXPECT_TRUE(streaming.answer().body.ends_with("data: [DONE]\n\n"));
  drained.get();
  server->wait();
}

TEST_F(ServerTest, DrainLimitTellsWhomItCutsOff) {
  generator.endless = true;
  generator.step = 1ms;
  options.drain_timeout = 50ms;
  start();
  const std::string endless = R"({"messages":[{"role":"user","content":"hi"}],"max_tokens":90000)";
  Client client(server->port()), streaming(server->port());
  client.send(post(chat_path, endless + "}"));
  streaming.send(post(chat_path, endless + R"(,"stream":true})"));
  EXPECT_NE(streaming.read_until("data: ").find("200 OK"), std::string::npos);
  ASSERT_TRUE(soon([&] { return generator.submitted == 2; }));
  server->drain();
  EXPECT_TRUE(soon([&] { return generator.stats().requests_cancelled == 2; }));
  const auto answer = client.answer();
  EXPECT_EQ(answer.status, 503);
  EXPECT_EQ(answer.json()["error"]["code"], "shutting_down");
  EXPECT_TRUE(client.closed_by_server());
  const std::string rest = streaming.read_all();
  EXPECT_NE(rest.find("\"shutting_down\""), std::string::npos);
  EXPECT_EQ(rest.find("[DONE]"), std::string::npos);
}

TEST_F(ServerTest, TooManyConnections) {
  options.max_connections = 2;
  start();
  Client a(server->port()), b(server->port());
  a.send(get("/health"));
  EXPECT_EQ(a.answer().status, 200);
  b.send(get("/health"));
  EXPECT_EQ(b.answer().status, 200);
  EXPECT_EQ(Client(server->port()).answer().status, 503);
  a.close();
  EXPECT_TRUE(soon([&] { return ask(get("/health")).status == 200; }));
}

TEST_F(ServerTest, PortInUseSaysWhatToDo) {
  start();
  ServerOptions second{.port = server->port()};
  const auto refused = Server::start(second, model);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("--port"), std::string::npos) << refused.error().message;
  EXPECT_EQ(refused.error().message.find('\n'), std::string::npos);
}

TEST_F(ServerTest, ManyClientsAtOnce) {
  options.threads = 4;
  start();
  std::vector<std::future<int>> clients;
  for (int c = 0; c < 16; ++c) {
    clients.push_back(std::async(std::launch::async, [&, c] {
      int good = 0;
      Client client(server->port());
      for (int i = 0; i < 20; ++i) {
        client.send(post(chat_path, c % 2 ? hi : hi_stream));
        const auto answer = client.answer();
        good += answer.status == 200 && (c % 2 ? answer.json()["choices"][0]["message"]["content"] == "hello"
                                               : answer.body.ends_with("data: [DONE]\n\n"));
      }
      return good;
    }));
  }
  for (auto& client : clients) EXPECT_EQ(client.get(), 20);
  EXPECT_EQ(generator.stats().running, 0);
}

}  // namespace
}  // namespace pinion
