#include "server/access_log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>

#include "server/http_message.h"

namespace pinion {
namespace {

bool is_hex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}
bool is_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

}  // namespace

Result<std::unique_ptr<AccessLog>> AccessLog::open(const std::string& path) {
  auto out = std::make_unique<AccessLog>();
  out->file_ = path == "-" ? stderr : std::fopen(path.c_str(), "ae");
  if (out->file_ == nullptr) {
    return fail(Errc::io, fmt::format("cannot open the access log: {}", std::strerror(errno)), path,
                "give a file that this user may write, or -");
  }
  return out;
}

AccessLog::~AccessLog() {
  if (file_ != nullptr && file_ != stderr) std::fclose(file_);
}

void AccessLog::write(const AccessRecord& r) {
  const auto now = std::chrono::system_clock::now();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  OrderedJson line;
  line["time"] = fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(std::chrono::system_clock::to_time_t(now)), ms);
  line["request_id"] = r.request_id;
  if (!r.trace_id.empty()) line["trace_id"] = r.trace_id;
  line["remote"] = r.remote;
  if (!r.key.empty()) line["key"] = r.key;
  line["method"] = r.method;
  line["route"] = r.route;
  if (!r.model.empty()) line["model"] = r.model;
  line["status"] = r.status;
  line["ms"] = std::round(r.seconds * 1e5) / 100;
  if (r.prompt_tokens > 0) {
    line["prompt_tokens"] = r.prompt_tokens;
    line["output_tokens"] = r.output_tokens;
  }
  const std::string text = dump(line) + "\n";
  const std::lock_guard lock(mutex_);
  std::fwrite(text.data(), 1, text.size(), file_);
  std::fflush(file_);
}

// W3C Trace Context: 00-<32 hex>-<16 hex>-<2 hex>, neither id all zeros.
TraceContext continue_trace(std::string_view t) {
  constexpr size_t kTrace = 3, kParent = 36, kFlags = 53, kSize = 55;
  if (t.size() != kSize || t.substr(0, kTrace) != "00-" || t[kParent - 1] != '-' || t[kFlags - 1] != '-') return {};
  const std::string_view trace = t.substr(kTrace, 32), parent = t.substr(kParent, 16), flags = t.substr(kFlags, 2);
  if (!is_hex(trace) || !is_hex(parent) || !is_hex(flags) || is_zero(trace) || is_zero(parent)) return {};
  thread_local std::random_device source;
  const std::string span = fmt::format("{:08x}{:08x}", source() | 1U, source());
  return {.trace_id = std::string(trace), .header = fmt::format("00-{}-{}-{}", trace, span, flags)};
}

}  // namespace pinion
