// Where the head leaves what rows need whose token is their largest logit: a number a row, in place of the row. Made by
// SamplingDevice::launch_head and read by SamplingDevice::sample_rows; what the numbers mean is the device's own.
#pragma once

#include <cstdint>

namespace pinion {

// Pointers are the device's, both or none.
struct LargestLogits {
  uint64_t* found = nullptr;        // [rows], zeros before the head
  const int32_t* stored = nullptr;  // [rows]: not 0: this row's logits are stored as ever, and `found` stays 0
};

}  // namespace pinion
