#include "compiler/timing.h"

#include <algorithm>

#include "checkpoint/dummy.h"
#include "compiler/packed_weights.h"

namespace pinion {

Result<std::unique_ptr<Buffer>> timing_weight(const WeightSpec& spec, Device& device, Stream& stream) {
  constexpr size_t kPattern = size_t{8} << 20;
  const bool packed = spec.layout == Layout::packed, in_place = device.host_visible();
  const size_t bytes = spec.bytes(), made = packed || in_place ? bytes : std::min(bytes, kPattern);
  PINION_TRY(auto host, device.allocate_pinned(std::max<size_t>(64, made)));
  if (packed) {
    fill_packed(spec.row_layout(), {host->data(), made});
  } else {
    fill_dummy("timing.weight", spec.dtype, {host->data(), made}, spec.cols);
  }
  if (in_place) return host;
  PINION_TRY(auto buffer, device.allocate(std::max<size_t>(64, bytes)));
  for (size_t at = 0; at < bytes; at += made) {
    stream.copy_to_device(buffer->data() + at, host->data(), std::min(made, bytes - at));
  }
  stream.synchronize();
  return buffer;
}

}  // namespace pinion
