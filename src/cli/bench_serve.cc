// pinion bench serve: load on any OpenAI-compatible server, in a closed loop (so many clients, each with its next
// request behind the last) or an open one (arrivals at a rate, however the server fares), and what each request saw.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "base/file.h"
#include "cli/bench.h"
#include "cli/http_stream.h"
#include "cli/load_report.h"

namespace pinion::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int32_t kMostThreads = 4096;
constexpr size_t kMostDatasetBytes = size_t{1} << 30;

struct Prompt {
  OrderedJson content;  // text, or token ids
  int32_t output_tokens = 0;
};

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Token ids that every vocabulary has, or words for chats; both never repeat beyond the common prefix.
Prompt random_prompt(const ServeLoadArgs& a, int64_t index) {
  std::mt19937_64 common(a.seed), own(a.seed * 1'000'003 + static_cast<uint64_t>(index) + 1);
  const auto token = [&](std::mt19937_64& source) {
    return static_cast<int32_t>(source() % static_cast<uint64_t>(a.vocab_size - 16)) +
           16;  // not the first few: special
  };
  if (a.chat) {
    static constexpr std::array words = {"river", "stone", "seven", "light", "morning", "paper", "engine", "cloud",
                                         "table", "north", "music", "field", "bread",   "glass", "winter", "letter"};
    std::string text;
    for (int32_t i = 0; i < a.prefix_len + a.input_len; ++i) {
      text += std::string(i == 0 ? "" : " ") + words[(i < a.prefix_len ? common() : own()) % words.size()];
    }
    return {.content = text, .output_tokens = a.output_len};
  }
  OrderedJson ids = OrderedJson::array();
  for (int32_t i = 0; i < a.prefix_len + a.input_len; ++i) ids.push_back(token(i < a.prefix_len ? common : own));
  return {.content = std::move(ids), .output_tokens = a.output_len};
}

// Lines of {"prompt": text, "output_tokens"?: n}, or ShareGPT's JSON: the first two turns of each conversation.
Result<std::vector<Prompt>> read_dataset(const ServeLoadArgs& a) {
  PINION_TRY(const std::string text, read_file(a.dataset, kMostDatasetBytes));
  std::vector<Prompt> out;
  const auto add = [&](const OrderedJson& item) {
    if (item.contains("prompt") && item["prompt"].is_string()) {
      const bool given = item.contains("output_tokens") && item["output_tokens"].is_number_integer();
      out.push_back({item["prompt"], given ? item["output_tokens"].get<int32_t>() : a.output_len});
    } else if (item.contains("conversations") && item["conversations"].is_array() &&
               item["conversations"].size() >= 2) {
      const OrderedJson& turns = item["conversations"];
      if (!turns[0].is_object() || !turns[0].contains("value") || !turns[0]["value"].is_string()) return;
      out.push_back({turns[0]["value"], a.output_len});
    }
  };
  if (text.find_first_not_of(" \t\r\n") != std::string::npos && text[text.find_first_not_of(" \t\r\n")] == '[') {
    PINION_TRY(const OrderedJson all, parse_ordered_json(text, a.dataset));
    for (const OrderedJson& item : all) {
      if (item.is_object()) add(item);
    }
  } else {
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      if (end > at) {
        PINION_TRY(const OrderedJson item, parse_ordered_json(std::string_view(text).substr(at, end - at), a.dataset));
        if (item.is_object()) add(item);
      }
      at = end + 1;
    }
  }
  if (out.empty()) {
    return fail(Errc::invalid_argument, "no prompt was found", a.dataset,
                "write lines of {\"prompt\": …}, or ShareGPT's conversations");
  }
  return out;
}

class Load {
 public:
  Load(const ServeLoadArgs& args, Endpoint endpoint, std::string model, std::vector<Prompt> prompts)
      : a_(args), endpoint_(std::move(endpoint)), model_(std::move(model)), prompts_(std::move(prompts)) {}

  LoadPoint closed_loop(int32_t concurrency) {
    LoadPoint point{.concurrency = concurrency};
    const int64_t count = std::max<int64_t>(a_.num_requests, concurrency);
    point.requests.resize(static_cast<size_t>(count));
    std::atomic<int64_t> next{0};
    const auto begin = Clock::now();
    std::vector<std::thread> clients;
    for (int32_t c = 0; c < concurrency; ++c) {
      clients.emplace_back([&] {
        HttpStream stream(endpoint_);
        for (int64_t i = next++; i < count; i = next++) point.requests[static_cast<size_t>(i)] = one(stream, i, begin);
      });
    }
    for (std::thread& t : clients) t.join();
    point.duration = since(begin);
    return point;
  }

  // Gaps are drawn from a gamma distribution of mean 1/rate: burstiness 1 is a Poisson process, less is burstier.
  LoadPoint open_loop(double rate) {
    LoadPoint point{.request_rate = rate};
    const auto count = static_cast<size_t>(a_.num_requests);
    point.requests.resize(count);
    std::mt19937_64 source(a_.seed);
    std::gamma_distribution<double> gap(a_.burstiness, std::isinf(rate) ? 1 : 1 / (rate * a_.burstiness));
    const auto begin = Clock::now();
    std::vector<std::thread> clients;
    double at = 0;
    for (size_t i = 0; i < count; ++i) {
      if (!std::isinf(rate)) at += std::isinf(a_.burstiness) ? 1 / rate : gap(source);
      std::this_thread::sleep_until(begin +
                                    std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(at)));
      clients.emplace_back([this, &point, i, begin] {
        HttpStream stream(endpoint_);
        point.requests[i] = one(stream, static_cast<int64_t>(i), begin);
      });
    }
    for (std::thread& t : clients) t.join();
    point.duration = since(begin);
    return point;
  }

  RequestRecord one(HttpStream& stream, int64_t index, Clock::time_point begin) {
    const Prompt prompt =
        prompts_.empty() ? random_prompt(a_, index + offset_) : prompts_[static_cast<size_t>(index) % prompts_.size()];
    OrderedJson body;
    body["model"] = model_;
    if (a_.chat) {
      body["messages"] = OrderedJson::array({{{"role", "user"}, {"content", prompt.content}}});
      body["max_completion_tokens"] = prompt.output_tokens;
    } else {
      body["prompt"] = prompt.content;
      body["max_tokens"] = prompt.output_tokens;
    }
    body["temperature"] = 0;
    body["stream"] = true;
    body["stream_options"]["include_usage"] = true;
    if (!a_.no_ignore_eos) body["ignore_eos"] = true;
    RequestRecord out;
    EventReader events;
    std::string whole;
    bool first = true;
    int64_t seen = 0;
    const auto sent = Clock::now();
    out.start = std::chrono::duration<double>(sent - begin).count();
    const auto on_data = [&](std::string_view data) {
      if (data == "[DONE]") return;
      const auto event = parse_ordered_json(data, "event");
      if (!event || !event->is_object()) return;
      if (event->contains("error")) out.error = (*event)["error"].dump();
      if (event->contains("usage") && (*event)["usage"].is_object()) {
        const OrderedJson& usage = (*event)["usage"];
        out.input_tokens = usage.value("prompt_tokens", int64_t{0});
        out.output_tokens = usage.value("completion_tokens", int64_t{0});
      }
      if (!event->contains("choices") || (*event)["choices"].empty()) return;
      const double now = since(sent);
      if (first) {
        out.ttft = now;
      } else {
        out.gaps.push_back(now - out.e2e);
      }
      first = false;
      ++seen;
      out.e2e = now;
    };
    const auto status = stream.request("POST", a_.chat ? "/v1/chat/completions" : "/v1/completions", body.dump(),
                                       header(), [&](std::string_view bytes) {
                                         if (whole.size() < 4096) whole += bytes;
                                         events.add(bytes, on_data);
                                       });
    if (!status) {
      out.error = status.error().message;
    } else if (*status != 200) {
      out.error = fmt::format("HTTP {}: {}", *status, whole.substr(0, 500));
    } else if (first && out.error.empty()) {
      out.error = "the answer has no event with a choice";
    }
    if (out.output_tokens == 0) out.output_tokens = seen;  // a server that tells no usage: events stand for tokens
    out.good = out.error.empty();
    return out;
  }

  std::string header() const { return a_.api_key.empty() ? "" : "Authorization: Bearer " + a_.api_key + "\r\n"; }
  void move_on() { offset_ += 1'000'000; }  // later points ask what the server has not cached

 private:
  const ServeLoadArgs& a_;
  const Endpoint endpoint_;
  const std::string model_;
  const std::vector<Prompt> prompts_;
  int64_t offset_ = 0;
};

Result<std::string> first_model(const ServeLoadArgs& a, const Endpoint& endpoint) {
  HttpStream stream(endpoint, 30);
  std::string body;
  PINION_TRY(const int status, stream.request("GET", "/v1/models", "",
                                              a.api_key.empty() ? "" : "Authorization: Bearer " + a.api_key + "\r\n",
                                              [&](std::string_view bytes) { body += bytes; }));
  const auto models = parse_ordered_json(body, "/v1/models");
  if (status != 200 || !models || !models->is_object() || !models->contains("data") || (*models)["data"].empty()) {
    return fail(Errc::io, fmt::format("HTTP {}: the server lists no model", status), a.url, "name it with --model");
  }
  return (*models)["data"][0].value("id", std::string());
}

// "1,2,8" or "inf".
Result<std::vector<double>> numbers(const std::string& text, const char* flag) {
  std::vector<double> out;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string item = text.substr(at, end - at);
    char* last = nullptr;
    const double value = std::strtod(item.c_str(), &last);
    if (item.empty() || *last != '\0' || !(value > 0)) {
      return fail(Errc::invalid_argument, fmt::format("\"{}\" is no number above 0", item), flag, "write 1,2,4");
    }
    out.push_back(value);
    at = end + 1;
  }
  return out;
}

Result<Limits> read_limits(const std::vector<std::string>& goodput) {
  Limits out;
  for (const std::string& item : goodput) {
    const size_t colon = item.find(':');
    const std::string name = item.substr(0, std::min(colon, item.size()));
    double* limit = name == "ttft" ? &out.ttft : name == "tpot" ? &out.tpot : name == "e2el" ? &out.e2el : nullptr;
    if (limit == nullptr || colon == std::string::npos) {
      return fail(Errc::invalid_argument, "unknown limit", "--goodput " + item,
                  "write ttft:200 tpot:50 e2el:5000 (ms)");
    }
    PINION_TRY(const auto value, numbers(item.substr(colon + 1), "--goodput"));
    *limit = value[0];
  }
  return out;
}

void print(const OrderedJson& p) {
  fmt::print("{:>8}  {:>5} ok {:>3} failed  {:8.2f} req/s {:9.1f} tok/s", p["load"].get<std::string>(),
             p["completed"].get<int64_t>(), p["failed"].get<int64_t>(), p["request_throughput"].get<double>(),
             p["output_throughput"].get<double>());
  for (const auto& [name, key] :
       {std::pair("ttft", "ttft_ms"), {"tpot", "tpot_ms"}, {"itl", "itl_ms"}, {"e2e", "e2el_ms"}}) {
    fmt::print("  {} {:.1f}/{:.1f}", name, p[key]["p50"].get<double>(), p[key]["p99"].get<double>());
  }
  if (p.contains("goodput")) fmt::print("  goodput {:.2f}/s", p["goodput"].get<double>());
  if (p.contains("cost_per_million_output_tokens")) {
    fmt::print("  {:.4f} per million output tokens", p["cost_per_million_output_tokens"].get<double>());
  }
  fmt::print("\n");
  std::fflush(stdout);
}

}  // namespace

Status bench_serve(ServeLoadArgs a) {
  PINION_TRY(const Endpoint endpoint, parse_url(a.url));
  PINION_TRY(const Limits limits, read_limits(a.goodput));
  const bool open = !a.request_rate.empty();
  PINION_TRY(const std::vector<double> loads,
             numbers(open ? a.request_rate : a.concurrency, open ? "--request_rate" : "--concurrency"));
  for (const double l : loads) {
    if (!open && (l != std::floor(l) || l > kMostThreads)) {
      return fail(Errc::invalid_argument, fmt::format("{} is not a number of clients up to {}", l, kMostThreads),
                  "--concurrency", "");
    }
  }
  if (open && a.num_requests > kMostThreads) {
    return fail(Errc::invalid_argument, fmt::format("more than {} requests in one open run", kMostThreads),
                "--num_requests", "lower it");
  }
  std::vector<Prompt> prompts;
  if (!a.dataset.empty()) {
    PINION_TRY(prompts, read_dataset(a));
  }
  if (a.model.empty()) {
    PINION_TRY(a.model, first_model(a, endpoint));
  }
  Load load(a, endpoint, a.model, std::move(prompts));
  HttpStream probe(endpoint);
  if (const RequestRecord r = load.one(probe, -1, Clock::now()); !r.good) {  // also warms up
    return fail(Errc::io, "the first request failed: " + r.error, a.url,
                "is the server up, and the model's name right?");
  }
  OrderedJson report;
  report["config"] = {{"url", a.url},
                      {"model", a.model},
                      {"endpoint", a.chat ? "chat" : "completions"},
                      {"dataset", a.dataset.empty() ? "random" : a.dataset},
                      {"num_requests", a.num_requests},
                      {"input_len", a.input_len},
                      {"output_len", a.output_len},
                      {"prefix_len", a.prefix_len},
                      {"burstiness", a.burstiness},
                      {"seed", a.seed},
                      {"ignore_eos", !a.no_ignore_eos}};
  report["points"] = OrderedJson::array();
  int64_t failed = 0;
  for (const double l : loads) {
    load.move_on();
    const LoadPoint point = open ? load.open_loop(l) : load.closed_loop(static_cast<int32_t>(l));
    report["points"].push_back(summarize(point, limits, a.price_per_hour));
    failed += report["points"].back()["failed"].get<int64_t>();
    if (!a.json) print(report["points"].back());
  }
  if (a.json) fmt::print("{}\n", report.dump());
  if (!a.output.empty()) PINION_OK(write_file(a.output, report.dump(2) + "\n"));
  if (!a.html.empty()) PINION_OK(write_file(a.html, html_report(report)));
  if (failed > 0) {
    return fail(Errc::io, fmt::format("{} requests failed", failed), a.url, "see first_error of the report");
  }
  return {};
}

void add_bench_serve(CLI::App& app, ServeLoadArgs& a) {
  app.add_option("--url,--base_url", a.url, "the server")->capture_default_str();
  app.add_option("--model", a.model, "what requests name; otherwise the first that the server lists");
  app.add_flag("--chat", a.chat, "ask /v1/chat/completions; otherwise /v1/completions");
  app.add_option("--dataset", a.dataset,
                 "JSON lines of {\"prompt\", \"output_tokens\"}, or ShareGPT's JSON; otherwise random prompts");
  app.add_option("--num_requests,--num_prompts", a.num_requests, "requests of each point")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--concurrency,--max_concurrency", a.concurrency, "closed loop: clients, or a sweep such as 1,2,4,8")
      ->capture_default_str();
  app.add_option("--request_rate", a.request_rate, "open loop: requests per second, or a sweep; inf: all at once");
  app.add_option("--burstiness", a.burstiness, "of an open loop: 1 is a Poisson process, below it burstier")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--input_len", a.input_len, "tokens (chat: words) of a random prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--output_len", a.output_len, "tokens asked for")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--prefix_len", a.prefix_len, "tokens before them that all random prompts share")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--vocab_size", a.vocab_size, "random prompts' token ids are below it")
      ->check(CLI::Range(32, 1 << 24))
      ->capture_default_str();
  app.add_option("--seed", a.seed, "of prompts and arrivals")->capture_default_str();
  app.add_flag("--no_ignore_eos", a.no_ignore_eos, "let the model end its answers");
  app.add_option("--goodput", a.goodput, "limits in ms: ttft:200 tpot:50 e2el:5000");
  app.add_option("--price_per_hour", a.price_per_hour, "of the machine: adds the cost per million tokens")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--api_key", a.api_key, "sent with every request");
  app.add_option("--output", a.output, "write the report as JSON");
  app.add_option("--html", a.html, "write the report as one HTML file with plots");
  app.add_flag("--json", a.json, "print one JSON object: config, points [{ttft_ms {p50 …}, tpot_ms, itl_ms …}]");
}

}  // namespace pinion::cli
