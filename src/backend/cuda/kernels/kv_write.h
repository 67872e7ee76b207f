// Writes the k and v inputs of an Attention with three inputs into its layer's pages, before the attention itself.
#pragma once

#include "backend/backend.h"

namespace pinion::cuda {

void write_kv(const LaunchArgs& args, Stream& stream);  // args of an Attention: in q, k, v

}  // namespace pinion::cuda
