// The KServe v2 (Open Inference) protocol and Triton's extensions: health, metadata, configuration, inference,
// generate, statistics, repository. REST is answered here; gRPC (grpc_call.cc) asks the same functions, so that both
// say the same. The name in a path may be any while there is one model, unless names are strict.
#pragma once

#include <optional>
#include <variant>

#include "server/api.h"
#include "server/kserve_writer.h"

namespace pinion {

// Null when the path is not under /v2.
std::optional<Reply> handle_kserve(ServerState& state, const HttpRequest& request);

// `version`: empty for the one there is.
std::variant<ApiError, ModelHandle> find_kserve_model(const ServerState& state, const std::string& name,
                                                      const std::string& version);

struct KserveInference {
  GenerationReply reply;  // its writer is empty: it is the next
  std::unique_ptr<KserveWriter> writer;
};
// Reads and admits what an inference asks for. `model` is the name that the client used, `request` carries its key and
// id. Without `can_stream` a message that asks for a stream is refused by naming `remedy`, which can.
std::variant<ApiError, KserveInference> start_kserve(ServerState& state, const HttpRequest& request,
                                                     const ModelHandle& served, const std::string& model,
                                                     const KserveMessage& message, KserveWriter::Form form,
                                                     bool can_stream, std::string_view remedy);

}  // namespace pinion
