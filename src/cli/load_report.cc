#include "cli/load_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

namespace pinion::cli {
namespace {

constexpr double kMilli = 1e3;

OrderedJson distribution(const std::vector<double>& seconds) {
  double sum = 0, squares = 0;
  for (const double s : seconds) sum += s, squares += s * s;
  const auto n = static_cast<double>(std::max<size_t>(1, seconds.size()));
  const double mean = sum / n;
  OrderedJson out;
  out["mean"] = mean * kMilli;
  out["std"] = std::sqrt(std::max(0.0, squares / n - mean * mean)) * kMilli;
  for (const int p : {50, 90, 95, 99}) out[fmt::format("p{}", p)] = percentile(seconds, p / 100.0) * kMilli;
  return out;
}

struct Plot {
  const char *title, *unit;
  std::vector<std::pair<const char*, std::function<double(const OrderedJson&)>>> lines;
};

double number(const OrderedJson& point, const char* a, const char* b) {
  return point[a][b].get<double>();
}

// One point of the sweep per step of x; y from 0 to a rounded maximum.
std::string svg(const Plot& plot, const OrderedJson& points) {
  constexpr double width = 460, height = 240, left = 60, bottom = 40, top = 30;
  constexpr std::array colors = {"#2563eb", "#dc2626", "#059669"};
  double most = 0;
  for (const OrderedJson& p : points) {
    for (const auto& [name, value] : plot.lines) most = std::max(most, value(p));
  }
  if (most <= 0) most = 1;
  const double unit = std::pow(10, std::floor(std::log10(most)));
  most = std::ceil(most / unit) * unit;
  const double steps = std::max<double>(1, static_cast<double>(points.size()) - 1);
  const auto x = [&](size_t i) { return left + (width - left - 20) * static_cast<double>(i) / steps; };
  const auto y = [&](double v) { return height - bottom - (height - bottom - top) * v / most; };
  std::string out = fmt::format(
      "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\"><text x=\"{}\" y=\"18\" class=\"t\">{} ({})</text>",
      width, height, plot.title, left, plot.title, plot.unit);
  for (int i = 0; i <= 4; ++i) {
    const double v = most * i / 4;
    out += fmt::format(
        "<path class=\"g\" d=\"M{} {:.1f}H{}\"/><text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.4g}</text>", left,
        y(v), width - 20, left - 6, y(v) + 4, v);
  }
  for (size_t i = 0; i < points.size(); ++i) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>", x(i), height - bottom + 16,
                       points[i]["load"].get<std::string>());
  }
  for (size_t l = 0; l < plot.lines.size(); ++l) {
    std::string path;
    for (size_t i = 0; i < points.size(); ++i) {
      path += fmt::format("{}{:.1f} {:.1f}", i == 0 ? "M" : "L", x(i), y(plot.lines[l].second(points[i])));
      out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>", x(i),
                         y(plot.lines[l].second(points[i])), colors[l]);
    }
    out += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>", path, colors[l]);
    out += fmt::format("<text x=\"{}\" y=\"{}\" fill=\"{}\">{}</text>", left + 80 * static_cast<double>(l), height - 6,
                       colors[l], plot.lines[l].first);
  }
  return out + "</svg>";
}

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    out += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  }
  return out;
}

}  // namespace

double percentile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const double rank = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (rank - static_cast<double>(below));
}

OrderedJson summarize(const LoadPoint& point, const Limits& limits, double price_per_hour) {
  std::vector<double> ttft, tpot, itl, e2e;
  int64_t input = 0, output = 0, good = 0, failed = 0;
  std::string first_error;
  for (const RequestRecord& r : point.requests) {
    if (!r.good) {
      ++failed;
      if (first_error.empty()) first_error = r.error;
      continue;
    }
    ttft.push_back(r.ttft);
    e2e.push_back(r.e2e);
    if (r.output_tokens > 1) tpot.push_back(r.tpot());
    itl.insert(itl.end(), r.gaps.begin(), r.gaps.end());
    input += r.input_tokens;
    output += r.output_tokens;
    const auto kept = [](double seconds, double limit) { return limit <= 0 || seconds * kMilli <= limit; };
    good += kept(r.ttft, limits.ttft) && kept(r.tpot(), limits.tpot) && kept(r.e2e, limits.e2el);
  }
  const double duration = std::max(point.duration, 1e-9);
  OrderedJson out;
  const bool open = point.request_rate > 0;
  out["load"] = !open                            ? fmt::format("{}", point.concurrency)
                : std::isinf(point.request_rate) ? std::string("inf")
                                                 : fmt::format("{:g}/s", point.request_rate);
  if (!open) out["concurrency"] = point.concurrency;
  if (open) out["request_rate"] = std::isinf(point.request_rate) ? OrderedJson("inf") : OrderedJson(point.request_rate);
  out["completed"] = ttft.size();
  out["failed"] = failed;
  if (failed > 0) out["first_error"] = first_error;
  out["duration_s"] = point.duration;
  out["input_tokens"] = input;
  out["output_tokens"] = output;
  out["request_throughput"] = static_cast<double>(ttft.size()) / duration;
  out["output_throughput"] = static_cast<double>(output) / duration;
  out["total_token_throughput"] = static_cast<double>(input + output) / duration;
  if (limits.any()) out["goodput"] = static_cast<double>(good) / duration;
  out["ttft_ms"] = distribution(ttft);
  out["tpot_ms"] = distribution(tpot);
  out["itl_ms"] = distribution(itl);
  out["e2el_ms"] = distribution(e2e);
  if (price_per_hour > 0 && output > 0) {
    const auto per_million = [&](int64_t tokens) {
      return price_per_hour / 3600 * duration / static_cast<double>(tokens) * 1e6;
    };
    out["cost_per_million_output_tokens"] = per_million(output);
    out["cost_per_million_tokens"] = per_million(input + output);
  }
  return out;
}

std::string html_report(const OrderedJson& report) {
  const OrderedJson& points = report["points"];
  const std::array<Plot, 4> plots = {{
      {"Output throughput",
       "tokens/s",
       {{"output", [](const OrderedJson& p) { return p["output_throughput"].get<double>(); }}}},
      {"Time to first token",
       "ms",
       {{"p50", [](const OrderedJson& p) { return number(p, "ttft_ms", "p50"); }},
        {"p99", [](const OrderedJson& p) { return number(p, "ttft_ms", "p99"); }}}},
      {"Time per output token",
       "ms",
       {{"p50", [](const OrderedJson& p) { return number(p, "tpot_ms", "p50"); }},
        {"p99", [](const OrderedJson& p) { return number(p, "tpot_ms", "p99"); }}}},
      {"Request latency",
       "ms",
       {{"p50", [](const OrderedJson& p) { return number(p, "e2el_ms", "p50"); }},
        {"p99", [](const OrderedJson& p) { return number(p, "e2el_ms", "p99"); }}}},
  }};
  std::string out =
      "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>pinion bench serve</title><style>"
      "body{font:15px system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color-scheme:light dark}"
      "svg{width:480px;max-width:100%;font-size:11px;fill:currentColor}.g{stroke:#8884;fill:none}.t{font-weight:600;"
      "font-size:13px}table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .7em;text-align:right;"
      "border-bottom:1px solid #8884}pre{white-space:pre-wrap}</style><h1>pinion bench serve</h1>";
  for (const Plot& plot : plots) out += svg(plot, points);
  out +=
      "<table><tr><th>load<th>requests<th>failed<th>req/s<th>tok/s<th>TTFT p50<th>p99<th>TPOT p50<th>p99<th>ITL p50"
      "<th>p99<th>E2E p50<th>p99</tr>";
  for (const OrderedJson& p : points) {
    out += fmt::format("<tr><td>{}<td>{}<td>{}<td>{:.2f}<td>{:.1f}", p["load"].get<std::string>(),
                       p["completed"].get<int64_t>(), p["failed"].get<int64_t>(), p["request_throughput"].get<double>(),
                       p["output_throughput"].get<double>());
    for (const char* name : {"ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"}) {
      out += fmt::format("<td>{:.2f}<td>{:.2f}", number(p, name, "p50"), number(p, name, "p99"));
    }
    out += "</tr>";
  }
  out +=
      "</table><p>Milliseconds. TTFT: from sending to the first event; TPOT: (end-to-end &minus; TTFT) / (output "
      "tokens &minus; 1); ITL: every gap between events; E2E: from sending to the last event.</p><pre>";
  return out + escape(report["config"].dump(2)) + "</pre></html>\n";
}

}  // namespace pinion::cli
