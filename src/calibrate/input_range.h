// The range that a static input scale covers. The largest magnitude of all clips nothing, and gives outliers the grid;
// smaller ranges clip some for a finer step (Wu et al., "Integer Quantization for Deep Learning Inference", 2020,
// section 4).
#pragma once

#include <cstdint>

#include "base/result.h"
#include "calibrate/input_statistics.h"

namespace pinion {

enum class RangeMethod : uint8_t {
  automatic,   // mse for int8, whose steps are all alike; max for fp8, which loses little by a wide range
  max,         // over all tokens of the calibration set
  percentile,  // 99.99 % of the sample's magnitudes
  mse,         // the least squared error of the sample, among fractions of the largest
};
Result<RangeMethod> range_method(std::string_view name);  // invalid_argument: lists the known ones

// Positive where any input is. `kind`: one of the static kinds.
float input_range(const InputStatistics& inputs, RangeMethod method, InputQuant kind);

}  // namespace pinion
