// What a step's rows are drawn with where the device chooses tokens: made from the requests' parameters and from what
// the device has counted of their outputs already. Not for the device: rows of prompt logprobs and of embeddings, and
// requests for whose edits or history the executor has no room (Executor::sampling_room).
#pragma once

#include <optional>
#include <vector>

#include "runtime/executor.h"
#include "runtime/history_room.h"
#include "runtime/scheduler.h"

namespace pinion {

struct DeviceDraws {
  std::vector<RowSampling> rows;
  std::vector<LogitEdit> edits;
  std::vector<HistoryWrite> histories;
  StepSampling sampling() const { return {.rows = rows, .edits = edits, .histories = histories}; }
};

// Nothing: the host must choose, or the step must wait until the tokens under way are known (a history that the device
// does not have, or has no more room for, is written whole). Takes histories' room for the plan's sequences.
std::optional<DeviceDraws> device_draws(const Plan& plan, const Executor& executor, HistoryRoom& room);

}  // namespace pinion
