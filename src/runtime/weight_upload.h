// Brings an engine's weights into the memory of a device that the host cannot write: through two pinned staging
// buffers, one filled by all CPUs while the other one's copy runs. Every weight's checksum is verified.
#pragma once

#include "backend/backend.h"
#include "engine/engine.h"

namespace pinion {

// `to` takes engine.data_bytes() bytes; a weight lies at its offset. Errors: corrupt, with the weight's name;
// exhausted.
Status upload_weights(const Engine& engine, Device& device, Stream& stream, std::byte* to);

}  // namespace pinion
