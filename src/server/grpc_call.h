// One gRPC call, from its first message to its status. Every method is served by the same reactor over bytes: a unary
// call is a stream that takes one message and gives one. gRPC's threads bring messages, the engine's thread only posts,
// the server's threads collect what the engine has made and write it, one message at a time.
#pragma once

#include <grpcpp/generic/async_generic_service.h>

#include "server/grpc_server.h"

namespace pinion {

// The reactor owns itself until gRPC is done with it.
grpc::ServerGenericBidiReactor* start_grpc_call(GrpcContext& context, grpc::GenericCallbackServerContext& rpc);

}  // namespace pinion
