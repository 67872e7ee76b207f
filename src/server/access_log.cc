#include "server/access_log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>

#include "server/http_message.h"

namespace pinion {

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

}  // namespace pinion
