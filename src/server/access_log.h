// The access log: one JSON object a line for every answered request.
#pragma once

#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "base/result.h"

namespace pinion {

struct GenerationTimes {   // in seconds; of several sequences their sums
  double first_token = 0;  // since the request's arrival; 0: there was none
  double queue = 0, prefill = 0, decode = 0;
  size_t sequences = 0;
};

struct AccessRecord {
  std::string_view request_id, trace_id, method, route = {}, remote = {}, key = {}, model = {};
  int status = 0;
  double seconds = 0;
  int64_t prompt_tokens = 0, output_tokens = 0;
  GenerationTimes times = {};
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

}  // namespace pinion
