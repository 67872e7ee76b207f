// The gRPC port: GRPCInferenceService of the KServe v2 protocol with Triton's extensions, and grpc.health.v1's Check,
// over the models that HTTP serves. In a build without gRPC's library start() says so (grpc_absent.cc).
#pragma once

#include <functional>
#include <memory>

#include "server/api.h"
#include "server/work_queue.h"

namespace pinion {

// What calls are answered with. `post` runs a function soon, on a thread that may tokenise and write.
struct GrpcContext {
  ServerState& state;
  WorkQueue& slow;
  std::function<void(std::function<void()>)> post;
  std::atomic<size_t> calls{0};  // that are open
};

class GrpcServer {
 public:
  // Listens on the options' grpc_port. `context` is borrowed. Errors: the port is in use, the certificate is wrong,
  // there is no gRPC in this build.
  static Result<std::unique_ptr<GrpcServer>> start(GrpcContext& context);
  ~GrpcServer();  // stop()

  static bool exists();  // false: start() is an error
  uint16_t port() const;
  void stop();  // cancels what runs; blocks until every call has ended

 private:
  struct Impl;
  explicit GrpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pinion
