#include "compiler/timing.h"

#include <algorithm>

#include "checkpoint/dummy.h"

namespace pinion {

Result<std::unique_ptr<Buffer>> timing_weight(const WeightSpec& spec, Device& device, Stream& stream) {
  constexpr size_t kPattern = size_t{8} << 20;
  const size_t bytes = spec.bytes(), pattern = std::min(bytes, kPattern);
  PINION_TRY(auto buffer, device.allocate(std::max<size_t>(64, bytes)));
  PINION_TRY(auto host, device.allocate_pinned(std::max<size_t>(64, pattern)));
  fill_dummy("timing.weight", spec.dtype, {host->data(), pattern}, spec.cols);
  for (size_t at = 0; at < bytes; at += pattern) {
    stream.copy_to_device(buffer->data() + at, host->data(), std::min(pattern, bytes - at));
  }
  stream.synchronize();
  return buffer;
}

}  // namespace pinion
