// The backend whose device has memory of its own, for tests that need such a device; null where there is none.
#pragma once

#include "backend/all/backends.h"

namespace pinion {

inline const Backend* device_backend() {
  for (const Backend* b : backends()) {
    if (b->probe().empty()) continue;
    auto device = b->open({});
    if (device.ok() && !(*device)->host_visible()) return b;
  }
  return nullptr;
}

}  // namespace pinion
