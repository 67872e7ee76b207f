// An optional ability of a device with memory of its own: streams that run beside each other, and order between them
// that the device keeps by itself while the host goes on. Asked for at load by dynamic_cast of the Device; without it
// copies and steps share one stream.
#pragma once

#include "backend/backend.h"

namespace pinion {

class StreamOrderDevice {
 public:
  virtual ~StreamOrderDevice() = default;
  // What `later` takes from now on begins when all that `earlier` has taken so far has ended. Throws DeviceError.
  virtual void run_after(Stream& later, Stream& earlier) = 0;
};

}  // namespace pinion
