// Spans as a collector gets them: a small receiver stands in for it, one that answers, refuses, or says nothing.
#include "server/telemetry.h"

#include <gmock/gmock.h>

#include "server/server_fixture.h"

namespace pinion {
namespace {

using testing::HasSubstr;

class Collector {
 public:
  explicit Collector(std::string answer) : answer_(std::move(answer)), fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(fd_, 16), 0);
    EXPECT_EQ(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~Collector() { close(); }
  void close() {
    if (!thread_.joinable()) return;
    ::shutdown(fd_, SHUT_RDWR);
    thread_.join();
    ::close(fd_);
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  std::vector<std::string> messages() const {
    const std::lock_guard lock(mutex_);
    return messages_;
  }
  std::vector<Json> spans() const {
    std::vector<Json> out;
    for (const std::string& m : messages()) {
      const Json body = Json::parse(m.substr(m.find("\r\n\r\n") + 4));
      for (const Json& span : body["resourceSpans"][0]["scopeSpans"][0]["spans"]) out.push_back(span);
    }
    return out;
  }

 private:
  void run() {
    for (int fd; (fd = ::accept(fd_, nullptr, nullptr)) >= 0; ::close(fd)) {
      std::string in;
      char bytes[4096];
      for (size_t want = 0; want == 0 || in.size() < want;) {
        const ssize_t size = ::recv(fd, bytes, sizeof bytes, 0);
        if (size <= 0) break;
        in.append(bytes, static_cast<size_t>(size));
        const size_t head = in.find("\r\n\r\n"), at = in.find("Content-Length: ");
        if (head != std::string::npos) want = head + 4 + std::strtoul(in.c_str() + at + 16, nullptr, 10);
      }
      {
        const std::lock_guard lock(mutex_);
        messages_.push_back(in);
      }
      if (answer_.empty()) {  // until the other side gives up
        (void)!::recv(fd, bytes, sizeof bytes, 0);
      } else {
        ::send(fd, answer_.data(), answer_.size(), MSG_NOSIGNAL);
      }
    }
  }

  const std::string answer_;
  const int fd_;
  uint16_t port_ = 0;
  mutable std::mutex mutex_;
  std::vector<std::string> messages_;
  std::thread thread_;
};

const std::string kTaken = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
const std::string kTrace = "0af7651916cd43dd8448eb211c80319c", kParent = "b7ad6b7169203331";

std::string attribute(const Json& span, std::string_view key) {
  for (const Json& a : span["attributes"]) {
    if (a["key"] == key) return a["value"].begin()->is_string() ? std::string(*a["value"].begin()) : a["value"].dump();
  }
  return "(none)";
}

TEST_F(ServerTest, ARequestsSpanGoesOnWithItsTrace) {
  Collector collector(kTaken);
  options.otlp_traces_endpoint = collector.url();
  start();
  const std::string fields = "X-Request-Id: mine\r\ntraceparent: 00-" + kTrace + "-" + kParent + "-";
  const auto answer = ask(post("/v1/completions", R"({"prompt":"ab","max_tokens":3})", fields + "01\r\n"));
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(ask(post("/v1/completions", R"({"prompt":"ab"})", fields + "00\r\n")).status, 200);  // not to be recorded
  EXPECT_EQ(ask(get("/v1/models")).status, 200);                                                 // a trace of its own
  server.reset();                                                                                // delivers what waits
  collector.close();

  const auto spans = collector.spans();
  ASSERT_EQ(spans.size(), 5U);
  const Json& request = spans[0];
  EXPECT_EQ(request["traceId"], kTrace);
  EXPECT_EQ(request["parentSpanId"], kParent);
  EXPECT_EQ(request["kind"], 2);
  EXPECT_THAT(answer.head, HasSubstr("traceparent: 00-" + kTrace + "-" + std::string(request["spanId"]) + "-01\r\n"));
  EXPECT_EQ(attribute(request, "http.response.status_code"), "200");
  EXPECT_EQ(attribute(request, "gen_ai.request.id"), "mine");
  EXPECT_EQ(attribute(request, "gen_ai.request.model"), "m");
  EXPECT_EQ(attribute(request, "gen_ai.usage.output_tokens"), "3");
  const auto time = [](const Json& span, const char* name) { return std::stoll(std::string(span[name])); };
  int64_t last = time(request, "startTimeUnixNano");
  for (const size_t i : {1U, 2U, 3U}) {
    EXPECT_EQ(spans[i]["name"], (i == 1 ? "queue" : i == 2 ? "prefill" : "decode"));
    EXPECT_EQ(spans[i]["traceId"], kTrace);
    EXPECT_EQ(spans[i]["parentSpanId"], request["spanId"]);
    EXPECT_GE(time(spans[i], "startTimeUnixNano"), last);
    EXPECT_GE(time(spans[i], "endTimeUnixNano"), time(spans[i], "startTimeUnixNano"));
    last = time(spans[i], "endTimeUnixNano");
  }
  EXPECT_LE(last, time(request, "endTimeUnixNano"));
  EXPECT_NE(spans[4]["traceId"], kTrace);
  EXPECT_FALSE(spans[4].contains("parentSpanId"));
  EXPECT_THAT(collector.messages()[0], HasSubstr("POST /v1/traces HTTP/1.1\r\n"));
  EXPECT_THAT(collector.messages()[0], HasSubstr("Content-Type: application/json\r\n"));
}

TEST_F(ServerTest, FailuresAreMarked) {
  Collector collector(kTaken);
  options.otlp_traces_endpoint = collector.url() + "/custom";
  generator.fail_after = 0;
  start();
  EXPECT_EQ(ask(post("/v1/completions", R"({"prompt":"ab"})")).status, 500);
  server.reset();
  collector.close();
  ASSERT_EQ(collector.spans().size(), 1U);
  EXPECT_EQ(collector.spans()[0]["status"]["code"], 2);
  EXPECT_THAT(collector.messages()[0], HasSubstr("POST /custom HTTP/1.1\r\n"));
}

TEST(SpanExporter, NeverWaitsForTheCollector) {
  const TraceContext trace = continue_trace("", true);
  const AccessRecord record{.request_id = "r", .trace_id = trace.trace_id, .method = "GET", .status = 200};
  Collector silent("");
  auto exporter =
      *SpanExporter::start({.endpoint = silent.url(), .max_queue = 8, .batch = 4, .interval = 5ms, .timeout = 50ms});
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) exporter->record(trace, record);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 1s);  // 1000 messages that wait would take 50 s
  EXPECT_GE(exporter->counts().dropped, 900U);              // the queue is bounded
  exporter.reset();

  auto refused = *SpanExporter::start({.endpoint = "http://127.0.0.1:1", .interval = 1ms});
  refused->record(trace, record);
  for (int i = 0; i < 3000 && refused->counts().dropped == 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(refused->counts().dropped, 1U);  // after some tries
  EXPECT_EQ(refused->counts().sent, 0U);
}

TEST(SpanExporter, SendsAgainWhatWasNotTaken) {
  const TraceContext trace = continue_trace("", true);
  Collector busy("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
  auto exporter = *SpanExporter::start({.endpoint = busy.url(), .interval = 1ms});
  exporter->record(trace, {.request_id = "r", .trace_id = trace.trace_id, .method = "GET", .status = 200});
  for (int i = 0; i < 3000 && exporter->counts().dropped == 0; ++i) std::this_thread::sleep_for(1ms);
  exporter.reset();
  busy.close();
  EXPECT_EQ(busy.messages().size(), 3U);
}

TEST(SpanExporter, RefusesWhatItCannotSpeak) {
  for (const char* endpoint : {"https://x:4318", "grpc://x:4317", "x:4318", "http://", "http://x:y", "http://a b"}) {
    const auto made = SpanExporter::start({.endpoint = endpoint});
    ASSERT_FALSE(made.ok()) << endpoint;
    EXPECT_THAT(made.error().message, HasSubstr("--otlp_traces_endpoint"));
  }
  EXPECT_TRUE(SpanExporter::start({.endpoint = "http://[::1]:4318/v1/traces"}).ok());
}

TEST(TraceContext, OnlyAValidParentIsContinued) {
  const std::string whole = "00-" + kTrace + "-" + kParent + "-01";
  EXPECT_EQ(continue_trace(whole).parent_id, kParent);
  EXPECT_TRUE(continue_trace(whole).sampled);
  for (const std::string bad :
       {whole + "0", "01" + whole.substr(2), "00-" + std::string(32, '0') + "-" + kParent + "-01",
        "00-" + kTrace + "-" + std::string(16, '0') + "-01", "00-" + kTrace + "-" + kParent + "-0G"}) {
    EXPECT_TRUE(continue_trace(bad).header.empty()) << bad;
    EXPECT_TRUE(continue_trace(bad, true).parent_id.empty()) << bad;
  }
}

}  // namespace
}  // namespace pinion
