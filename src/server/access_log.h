// The access log: one JSON object a line for every answered request, and the trace context of W3C that a request
// brings.
#pragma once

#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "base/result.h"

namespace pinion {

struct AccessRecord {
  std::string_view request_id, trace_id, method, route = {}, remote = {}, key = {}, model = {};
  int status = 0;
  double seconds = 0;
  int64_t prompt_tokens = 0, output_tokens = 0;
};

class AccessLog {
 public:
  // "-": standard error; else a file that lines are appended to.
  static Result<std::unique_ptr<AccessLog>> open(const std::string& path);
  ~AccessLog();
  void write(const AccessRecord& record);  // thread-safe

 private:
  std::mutex mutex_;
  std::FILE* file_ = nullptr;
};

// A valid "traceparent" (version 00): its trace goes on under a span id of our own, which is answered. Empty otherwise.
struct TraceContext {
  std::string trace_id, header;  // header: what the answer carries
};
TraceContext continue_trace(std::string_view traceparent);

}  // namespace pinion
