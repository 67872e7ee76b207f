// The messages of kserve.proto to and from what the server computes with. Every call but inference is put as its REST
// twin asks it and answered from that answer's JSON; an inference becomes the JSON head and the binary data of /infer.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "server/http_message.h"
#include "server/kserve_call.h"

namespace pinion {

struct GrpcInferRequest {
  std::string model, version, id;
  KserveMessage message;
  bool empty_final = false;  // triton_enable_empty_final_response
};
// `bytes` is a ModelInferRequest. `id` is set also when an error follows, if it could be read. Errors: not that
// message, or as read_infer_message().
Result<GrpcInferRequest> read_grpc_infer(std::string_view bytes, std::string& id);

struct GrpcInferResponse {
  std::string_view model, version, id;
  std::span<const KserveTensor> tensors;
  std::optional<bool> final;  // triton_final_response, of streams
};
std::string grpc_infer_response(const GrpcInferResponse& response);         // a ModelInferResponse
std::string grpc_stream_response(const GrpcInferResponse& response);        // a ModelStreamInferResponse
std::string grpc_stream_error(std::string_view id, std::string_view text);  // too

// A call that takes one message and gives one.
struct GrpcMethod {
  std::string_view path;  // "/inference.GRPCInferenceService/ServerLive"
  // What REST is asked; empty: `bytes` is not the method's message.
  std::optional<HttpRequest> (*request)(std::string_view bytes);
  // The message that answers: of REST's answer, or an error.
  std::variant<std::string, ApiError> (*answer)(const HttpResponse& response);
};
const GrpcMethod* find_grpc_method(std::string_view path);  // null: there is none

// The extension that a method belongs to which is known and not implemented; empty: it is none of those.
std::string_view unimplemented_grpc_extension(std::string_view path);

}  // namespace pinion
