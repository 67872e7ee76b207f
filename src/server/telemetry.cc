#include "server/telemetry.h"

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "base/json.h"
#include "base/log.h"
#include "server/http_message.h"

namespace pinion {
namespace {

using SystemClock = std::chrono::system_clock;

constexpr int kMostTries = 3;                                        // of one message; its interval lies between them
constexpr std::chrono::seconds kWarnEvery{60};                       // about a collector that does not answer
constexpr int kServerKind = 2, kInternalKind = 1, kErrorStatus = 2;  // of the protocol's enumerations

bool is_hex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}
bool is_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

std::string random_hex(size_t words) {  // 8 digits each, not all zero
  thread_local std::random_device source;
  std::string out = fmt::format("{:08x}", source() | 1U);
  for (size_t i = 1; i < words; ++i) out += fmt::format("{:08x}", source());
  return out;
}

struct FinishedRequest {
  TraceContext trace;
  SystemClock::time_point end;
  std::string request_id, method, route, model;
  int status = 0;
  double seconds = 0;
  int64_t prompt_tokens = 0, output_tokens = 0;
  GenerationTimes times;
};

OrderedJson attribute(std::string_view key, OrderedJson value, const char* type) {
  OrderedJson out;
  out["key"] = key;
  out["value"][type] = std::move(value);
  return out;
}
OrderedJson text_attribute(std::string_view key, std::string_view value) {
  return attribute(key, value, "stringValue");
}
OrderedJson int_attribute(std::string_view key, int64_t value) {
  return attribute(key, std::to_string(value), "intValue");  // 64-bit integers are strings in the protocol's JSON
}

std::string nanoseconds(SystemClock::time_point begin, double seconds) {
  const auto at = begin + std::chrono::duration_cast<SystemClock::duration>(std::chrono::duration<double>(seconds));
  return std::to_string(std::chrono::duration_cast<std::chrono::nanoseconds>(at.time_since_epoch()).count());
}

OrderedJson span(const TraceContext& trace, std::string_view id, std::string_view parent, std::string_view name,
                 int kind, SystemClock::time_point begin, double from, double to) {
  OrderedJson out;
  out["traceId"] = trace.trace_id;
  out["spanId"] = id;
  if (!parent.empty()) out["parentSpanId"] = parent;
  out["name"] = name;
  out["kind"] = kind;
  out["startTimeUnixNano"] = nanoseconds(begin, from);
  out["endTimeUnixNano"] = nanoseconds(begin, to);
  return out;
}

void add_spans(const FinishedRequest& r, OrderedJson& spans) {
  const auto begin =
      r.end - std::chrono::duration_cast<SystemClock::duration>(std::chrono::duration<double>(r.seconds));
  OrderedJson whole =
      span(r.trace, r.trace.span_id, r.trace.parent_id, r.method + " " + r.route, kServerKind, begin, 0, r.seconds);
  OrderedJson attributes = OrderedJson::array();
  attributes.push_back(text_attribute("http.request.method", r.method));
  attributes.push_back(text_attribute("http.route", r.route));
  attributes.push_back(int_attribute("http.response.status_code", r.status));
  attributes.push_back(text_attribute("gen_ai.request.id", r.request_id));
  const GenerationTimes& t = r.times;
  if (!r.model.empty()) {
    attributes.push_back(text_attribute("gen_ai.request.model", r.model));
    attributes.push_back(int_attribute("gen_ai.usage.input_tokens", r.prompt_tokens));
    attributes.push_back(int_attribute("gen_ai.usage.output_tokens", r.output_tokens));
    attributes.push_back(int_attribute("gen_ai.usage.num_sequences", static_cast<int64_t>(t.sequences)));
    attributes.push_back(attribute("gen_ai.latency.e2e", r.seconds, "doubleValue"));
    if (t.first_token > 0) {
      attributes.push_back(attribute("gen_ai.latency.time_to_first_token", t.first_token, "doubleValue"));
    }
  }
  whole["attributes"] = std::move(attributes);
  if (r.status >= 500) whole["status"]["code"] = kErrorStatus;
  spans.push_back(std::move(whole));
  if (t.sequences != 1 || t.first_token <= 0) return;  // several sequences overlap: their sums are no intervals
  const double admitted = std::max(0.0, t.first_token - t.prefill), queued = std::max(0.0, admitted - t.queue);
  const auto part = [&](std::string_view name, double from, double to) {
    spans.push_back(span(r.trace, random_hex(2), r.trace.span_id, name, kInternalKind, begin, from, to));
  };
  part("queue", queued, admitted);
  part("prefill", admitted, t.first_token);
  part("decode", t.first_token, std::min(r.seconds, t.first_token + t.decode));
}

std::string message(const std::deque<FinishedRequest>& batch) {
  OrderedJson spans = OrderedJson::array();
  for (const FinishedRequest& r : batch) add_spans(r, spans);
  OrderedJson scope;
  scope["scope"]["name"] = "pinion";
  scope["spans"] = std::move(spans);
  OrderedJson resource;
  resource["resource"]["attributes"] =
      OrderedJson::array({text_attribute("service.name", "pinion"), text_attribute("service.version", PINION_VERSION)});
  resource["scopeSpans"] = OrderedJson::array({std::move(scope)});
  OrderedJson out;
  out["resourceSpans"] = OrderedJson::array({std::move(resource)});
  return dump(out);
}

struct Collector {
  std::string host, port, path;
};

Result<Collector> parse_endpoint(const std::string& endpoint) {
  const auto bad = [&](std::string_view what) {
    return fail(Errc::invalid_argument, what, "--otlp_traces_endpoint " + endpoint,
                "write http://collector:4318/v1/traces");
  };
  constexpr std::string_view scheme = "http://";
  if (!endpoint.starts_with(scheme)) return bad("spans are sent as OTLP over plain HTTP");
  const std::string_view rest = std::string_view(endpoint).substr(scheme.size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  const std::string_view place = rest.substr(0, slash), path = rest.substr(slash);
  const size_t bracket = place.find(']');  // of an IPv6 address
  const size_t colon = place.find(':', bracket == std::string_view::npos ? 0 : bracket);
  std::string_view host = place.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  const std::string_view port = colon == std::string_view::npos ? "80" : place.substr(colon + 1);
  if (host.empty() || port.empty() || port.find_first_not_of("0123456789") != std::string_view::npos ||
      rest.find_first_of(" \r\n@") != std::string_view::npos) {
    return bad("this is no URL of a collector");
  }
  return Collector{.host = std::string(host),
                   .port = std::string(port),
                   .path = path.size() <= 1 ? "/v1/traces" : std::string(path)};
}

// Posts one message: empty, or why it was not taken.
std::string deliver(const Collector& to, const std::string& body, std::chrono::milliseconds timeout) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = ::getaddrinfo(to.host.c_str(), to.port.c_str(), &hints, &found); code != 0) {
    return ::gai_strerror(code);
  }
  const timeval limit{.tv_sec = timeout.count() / 1000, .tv_usec = timeout.count() % 1000 * 1000};
  int fd = -1;
  for (const addrinfo* a = found; a != nullptr && fd < 0; a = a->ai_next) {
    fd = ::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0) continue;
    ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);  // connect()'s too
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (::connect(fd, a->ai_addr, a->ai_addrlen) == 0) break;
    ::close(fd);
    fd = -1;
  }
  ::freeaddrinfo(found);
  if (fd < 0) return "cannot connect";
  std::string answer;
  const std::string request = fmt::format(
      "POST {} HTTP/1.1\r\nHost: {}:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n"
      "Connection: close\r\n\r\n{}",
      to.path, to.host, to.port, body.size(), body);
  bool sent = true;
  for (size_t done = 0; sent && done < request.size();) {
    const ssize_t size = ::send(fd, request.data() + done, request.size() - done, MSG_NOSIGNAL);
    sent = size > 0;
    done += sent ? static_cast<size_t>(size) : 0;
  }
  constexpr size_t status_line = 12;  // HTTP/1.1 200: nothing more is read
  char bytes[512];
  while (sent && answer.size() < status_line) {
    const ssize_t size = ::recv(fd, bytes, sizeof bytes, 0);
    if (size <= 0) break;
    answer.append(bytes, static_cast<size_t>(size));
  }
  ::close(fd);
  if (answer.size() < status_line) return "no answer";
  return answer.compare(9, 1, "2") == 0 ? "" : "HTTP " + answer.substr(9, 3);
}

}  // namespace

// W3C Trace Context: 00-<32 hex>-<16 hex>-<2 hex>, neither id all zeros.
TraceContext continue_trace(std::string_view t, bool begin) {
  constexpr size_t kTrace = 3, kParent = 36, kFlags = 53, kSize = 55;
  const auto valid = [&] {
    if (t.size() != kSize || t.substr(0, kTrace) != "00-" || t[kParent - 1] != '-' || t[kFlags - 1] != '-')
      return false;
    const std::string_view trace = t.substr(kTrace, 32), parent = t.substr(kParent, 16);
    return is_hex(trace) && is_hex(parent) && is_hex(t.substr(kFlags, 2)) && !is_zero(trace) && !is_zero(parent);
  };
  TraceContext out;
  std::string flags = "01";
  if (valid()) {
    out.trace_id = t.substr(kTrace, 32);
    out.parent_id = t.substr(kParent, 16);
    flags = t.substr(kFlags, 2);
    out.sampled = (flags[1] >= 'a' ? flags[1] - 'a' + 10 : flags[1] - '0') & 1;
  } else if (begin) {
    out.trace_id = random_hex(4);
    out.sampled = true;
  } else {
    return {};
  }
  out.span_id = random_hex(2);
  out.header = fmt::format("00-{}-{}-{}", out.trace_id, out.span_id, flags);
  return out;
}

struct SpanExporter::Impl {
  void run() {
    std::unique_lock lock(mutex);
    int tries = 0;
    std::deque<FinishedRequest> batch;
    for (;;) {
      changed.wait_for(lock, options.interval,
                       [&] { return quit || (batch.empty() && queue.size() >= options.batch); });
      while (!queue.empty() && batch.size() < options.batch) {
        batch.push_back(std::move(queue.front()));
        queue.pop_front();
      }
      if (batch.empty()) {
        if (quit) return;
        continue;
      }
      const bool last = quit;
      lock.unlock();
      const std::string error = deliver(collector, message(batch), options.timeout);
      lock.lock();
      if (error.empty()) {
        counts.sent += batch.size();
        batch.clear();
        tries = 0;
      } else if (++tries == kMostTries || last) {
        counts.dropped += batch.size();
        warn(error);
        batch.clear();
        tries = 0;
        if (last) counts.dropped += queue.size(), queue.clear();
      }
    }
  }

  void warn(const std::string& error) {
    const auto now = SystemClock::now();
    if (now - warned < kWarnEvery) return;
    warned = now;
    spdlog::warn("spans are dropped, {} requests so far: the collector at {} does not take them: {}", counts.dropped,
                 options.endpoint, error);
  }

  SpanExportOptions options;
  Collector collector;
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::deque<FinishedRequest> queue;
  Counts counts;
  SystemClock::time_point warned;
  bool quit = false;
  std::thread thread;
};

SpanExporter::SpanExporter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<SpanExporter>> SpanExporter::start(SpanExportOptions options) {
  auto impl = std::make_unique<Impl>();
  PINION_TRY(impl->collector, parse_endpoint(options.endpoint));
  impl->options = std::move(options);
  impl->thread = std::thread([state = impl.get()] { state->run(); });
  return std::unique_ptr<SpanExporter>(new SpanExporter(std::move(impl)));
}

SpanExporter::~SpanExporter() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->quit = true;
  }
  impl_->changed.notify_all();
  impl_->thread.join();
}

void SpanExporter::record(const TraceContext& trace, const AccessRecord& r) {
  if (!trace.sampled) return;
  FinishedRequest request{.trace = trace,
                          .end = SystemClock::now(),
                          .request_id = std::string(r.request_id),
                          .method = std::string(r.method),
                          .route = std::string(r.route),
                          .model = std::string(r.model),
                          .status = r.status,
                          .seconds = r.seconds,
                          .prompt_tokens = r.prompt_tokens,
                          .output_tokens = r.output_tokens,
                          .times = r.times};
  const std::lock_guard lock(impl_->mutex);
  if (impl_->queue.size() >= impl_->options.max_queue) {
    ++impl_->counts.dropped;
    return;
  }
  impl_->queue.push_back(std::move(request));
  if (impl_->queue.size() == impl_->options.batch) impl_->changed.notify_one();
}

SpanExporter::Counts SpanExporter::counts() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts;
}

}  // namespace pinion
