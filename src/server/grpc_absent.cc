// GrpcServer in a build without gRPC's library.
#include "server/grpc_server.h"

namespace pinion {

struct GrpcServer::Impl {};
GrpcServer::GrpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GrpcServer::~GrpcServer() = default;

Result<std::unique_ptr<GrpcServer>> GrpcServer::start(GrpcContext&) {
  return fail(
      Errc::unsupported, "this program was built without gRPC", "--grpc_port",
      "install libgrpc++-dev, libprotobuf-dev and protobuf-compiler, and build it again; or leave the flag out: "
      "the same protocol is there over HTTP");
}
bool GrpcServer::exists() {
  return false;
}
uint16_t GrpcServer::port() const {
  return 0;
}
void GrpcServer::wake() {}
void GrpcServer::stop() {}

}  // namespace pinion
