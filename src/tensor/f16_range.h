// float16 ends at 65504: past it a conversion yields infinity, which turns every result into no number. Who converts
// weights looks for it and refuses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace pinion {

// Whether any of the float16 values in `bytes` (unaligned) is infinite.
inline bool has_f16_infinity(std::span<const std::byte> bytes) {
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    uint16_t v = 0;
    std::memcpy(&v, bytes.data() + i, 2);
    if ((v & 0x7fff) == 0x7c00) return true;
  }
  return false;
}

}  // namespace pinion
