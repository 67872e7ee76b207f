// The routing kernel of kernels/moe.cc's list.
#pragma once

#include "backend/backend.h"

namespace pinion::cpu {

size_t moe_route_workspace(const Call& call, const Tuning& tuning, const DeviceInfo& info);
void moe_route(const LaunchArgs& args, Stream& stream);

}  // namespace pinion::cpu
