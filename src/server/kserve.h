// The REST side of the KServe v2 (Open Inference) protocol and of Triton's extensions: health, metadata, configuration,
// inference, generate, statistics, repository index. One model, version 1; its name in a path may be any unless names
// are strict.
#pragma once

#include <optional>

#include "server/api.h"

namespace pinion {

// Null when the path is not under /v2.
std::optional<Reply> handle_kserve(ServerState& state, const HttpRequest& request);

}  // namespace pinion
