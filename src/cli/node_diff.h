// What `pinion diff` does: two engines of one model over the same tokens, node by node. The passes keep the values'
// ids, so a value that exists in both graphs is compared; the first that diverges is named with its scope.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "engine/engine.h"
#include "runtime/engine_executor.h"

namespace pinion::cli {

// How far two values of one node are apart: row and column of the largest difference, and what stands there.
struct Divergence {
  double worst = 0, rms = 0;  // of the difference
  double scale = 0;           // rms of the reference's value
  int64_t row = 0, column = 0;
  float got = 0, want = 0;
};

struct NodeDiff {
  int compared = 0;  // values that both graphs have
  Divergence logits;
};

// Both executors run `ids` as one prompt with all outputs; they need room for it. `tolerance` is the rms difference
// allowed, relative to the value's rms; 0: by the KV cache's dtype. Errc::internal names the node that diverges first:
// op, scope, place, kernel, and the last node before it that agreed — what a fusion made between them is not compared.
Result<NodeDiff> diff_nodes(const Engine& engine, EngineExecutor& executor, const Engine& reference,
                            EngineExecutor& reference_executor, std::span<const int32_t> ids, double tolerance = 0);

}  // namespace pinion::cli
