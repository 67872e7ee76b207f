// The gRPC port: GRPCInferenceService of the KServe v2 protocol with Triton's extensions, and grpc.health.v1's Check,
// over the models that HTTP serves. In a build without gRPC's library start() says so (grpc_absent.cc).
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>

#include "server/api.h"
#include "server/work_queue.h"

namespace pinion {

class GrpcCall {  // that is open
 public:
  virtual ~GrpcCall() = default;
  virtual void wake() = 0;  // thread-safe: looks again whether it may go on
};

// What calls are answered with. `post` runs a function soon, on a thread that may tokenise and write.
struct GrpcContext {
  ServerState& state;
  WorkQueue& slow;
  std::function<void(std::function<void()>)> post;
  std::mutex mutex{};
  std::list<std::weak_ptr<GrpcCall>> calls{};  // guarded by `mutex`
  std::atomic<bool> stopping{false};           // a call ends once it has sent what it has

  void wake_calls();
};

class GrpcServer {
 public:
  // Listens on the options' grpc_port. `context` is borrowed. Errors: the port is in use, the certificate is wrong,
  // there is no gRPC in this build.
  static Result<std::unique_ptr<GrpcServer>> start(GrpcContext& context);
  ~GrpcServer();  // stop()

  static bool exists();  // false: start() is an error
  uint16_t port() const;
  void wake();  // thread-safe: every call looks whether the drain's time is over
  // Cancels what runs; what was answered is sent, within a second or two. Blocks until every call has ended.
  void stop();

 private:
  struct Impl;
  explicit GrpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pinion
