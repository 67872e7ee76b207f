// What LLM(...) can set: the flags of `pinion serve` that concern the model and its loop, by the same names, with their
// ranges checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "runtime/engine_loop.h"
#include "session/open_model.h"

namespace pinion::python {

struct Options {
  ModelArgs model;
  std::string policy = "max_utilization";
  int32_t max_queue = 1 << 20;  // the callers are this program's own: they wait, they are not refused
  int32_t chunk_tokens = 512;
  bool no_prefix_reuse = false;
};

// Errors: invalid_argument, naming the setting and its range.
Status check(const Options& options);
// With the limits that the executor has in force.
LoopOptions loop_options(const Options& options, const ExecutorOptions& limits);

}  // namespace pinion::python
