// Which linears get 8 bits where the others have 4: those whose outputs gain most per byte that it costs.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "calibrate/quantize_model.h"

namespace pinion {

// The modules by error saved per byte added, the best first; of a report with error_8bit.
std::vector<std::string> by_gain(const std::vector<LinearReport>& report);

// Bits per weight of all linears together when the first n of `order` have 8 bits.
double bits_with(const std::vector<LinearReport>& report, const std::vector<std::string>& order, size_t n);

// The most of `order` that keep within `bits`. Errors: invalid_argument when none at all does not.
Result<size_t> count_for_size(const std::vector<LinearReport>& report, const std::vector<std::string>& order,
                              double bits);

// The least n of 0 … total whose loss is at most `most`, by halving: a loss is taken to fall as n grows. Errors:
// invalid_argument when all do not suffice; what loss_of gives.
Result<size_t> count_for_loss(size_t total, double most, const std::function<Result<double>(size_t)>& loss_of);

}  // namespace pinion
