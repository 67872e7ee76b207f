// The figures of `pinion bench serve`, from requests whose times are known.
#include "cli/load_report.h"

#include <gtest/gtest.h>

#include "cli/http_stream.h"

namespace pinion::cli {
namespace {

TEST(LoadReport, PercentilesInterpolate) {
  EXPECT_EQ(percentile({}, 0.5), 0);
  EXPECT_EQ(percentile({3, 1, 2}, 0.5), 2);
  EXPECT_DOUBLE_EQ(percentile({1, 2}, 0.25), 1.25);
  EXPECT_EQ(percentile({1, 2, 3}, 1), 3);
}

TEST(LoadReport, FiguresOfKnownRequests) {
  LoadPoint point{.concurrency = 2, .duration = 2};
  point.requests.push_back(
      {.good = true, .ttft = 0.1, .e2e = 0.5, .gaps = {0.2, 0.2}, .input_tokens = 10, .output_tokens = 3});
  point.requests.push_back({.good = true, .ttft = 0.3, .e2e = 0.3, .input_tokens = 10, .output_tokens = 1});
  point.requests.push_back({.good = false, .error = "HTTP 500"});
  const OrderedJson s = summarize(point, {.ttft = 200}, 3.6);
  EXPECT_EQ(s["completed"], 2);
  EXPECT_EQ(s["failed"], 1);
  EXPECT_EQ(s["first_error"], "HTTP 500");
  EXPECT_EQ(s["request_throughput"], 1);
  EXPECT_EQ(s["output_throughput"], 2);
  EXPECT_EQ(s["goodput"], 0.5);
  EXPECT_NEAR(s["ttft_ms"]["p50"].get<double>(), 200, 1e-9);
  EXPECT_NEAR(s["tpot_ms"]["mean"].get<double>(), 200, 1e-9);  // of the one with more than one token
  EXPECT_NEAR(s["itl_ms"]["p99"].get<double>(), 200, 1e-9);
  EXPECT_NEAR(s["cost_per_million_output_tokens"].get<double>(), 500, 1e-9);  // 0.001 a second, 2 tokens a second
  const std::string html = html_report({{"config", {{"url", "<x>"}}}, {"points", OrderedJson::array({s})}});
  EXPECT_NE(html.find("<svg"), std::string::npos);
  EXPECT_EQ(html.find("<x>"), std::string::npos);
  EXPECT_EQ(html.find("http"), std::string::npos);  // nothing is loaded from anywhere
}

TEST(HttpStream, UrlsAndEvents) {
  const auto url = parse_url("http://[::1]:81/base/v1/");
  ASSERT_TRUE(url.ok());
  EXPECT_EQ(url->host, "::1");
  EXPECT_EQ(url->port, "81");
  EXPECT_EQ(url->path, "/base");
  EXPECT_EQ(parse_url("http://h")->port, "80");
  EXPECT_FALSE(parse_url("https://h").ok());
  EXPECT_FALSE(parse_url("h:80").ok());
  EventReader reader;
  std::string seen;
  const auto take = [&](std::string_view data) { seen += std::string(data) + "|"; };
  reader.add("data: a\n\n: ping\n\nevent: x\nda", take);
  reader.add("ta: b\r\n\r\ndata:c\n\ndata: unfinished", take);
  EXPECT_EQ(seen, "a|b|c|");
}

}  // namespace
}  // namespace pinion::cli
