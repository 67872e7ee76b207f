#include "server/grpc_server.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include "base/file.h"
#include "server/grpc_call.h"

namespace pinion {
namespace {

// How long calls that still run have to hear that the server stops; and answers to reach a client that reads slowly.
constexpr std::chrono::milliseconds kStopGrace{100}, kSendGrace{2000};

class CallService final : public grpc::CallbackGenericService {
 public:
  explicit CallService(GrpcContext& context) : context_(context) {}
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* rpc) override {
    return start_grpc_call(context_, *rpc);
  }

 private:
  GrpcContext& context_;
};

Result<std::shared_ptr<grpc::ServerCredentials>> credentials(const ServerOptions& options) {
  if (options.tls_key.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions ssl;
  PINION_TRY(std::string key, read_file(options.tls_key));
  PINION_TRY(std::string certificate, read_file(options.tls_certificate));
  ssl.pem_key_cert_pairs.push_back({std::move(key), std::move(certificate)});
  return grpc::SslServerCredentials(ssl);
}

}  // namespace

struct GrpcServer::Impl {
  explicit Impl(GrpcContext& context) : service(context), context(context) {}

  CallService service;
  GrpcContext& context;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

void GrpcContext::wake_calls() {
  std::vector<std::shared_ptr<GrpcCall>> open;
  {
    const std::lock_guard lock(mutex);
    for (const auto& entry : calls) {
      if (auto call = entry.lock()) open.push_back(std::move(call));
    }
  }
  for (const auto& call : open) call->wake();
}

GrpcServer::GrpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GrpcServer::~GrpcServer() {
  stop();
}

Result<std::unique_ptr<GrpcServer>> GrpcServer::start(GrpcContext& context) {
  const ServerOptions& options = context.state.options;
  auto impl = std::make_unique<Impl>(context);
  PINION_TRY(const auto secrets, credentials(options));
  const bool v6 = options.host.find(':') != std::string::npos;
  const std::string where = fmt::format(fmt::runtime(v6 ? "[{}]:{}" : "{}:{}"), options.host, *options.grpc_port);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(where, secrets, &impl->port);
  builder.RegisterCallbackGenericService(&impl->service);
  builder.SetMaxReceiveMessageSize(static_cast<int>(std::min(options.max_body_bytes, size_t{1} << 30)));
  builder.SetMaxSendMessageSize(-1);                        // an answer is bounded by its request
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a port that is taken is an error
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(options.max_header_bytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(options.max_connections));
  impl->server = builder.BuildAndStart();
  if (!impl->server || impl->port == 0) {
    impl->server.reset();
    return fail(Errc::invalid_argument, "cannot listen for gRPC: the port is in use, or the address is not ours", where,
                "choose another with --grpc_port, or another address with --host");
  }
  return std::unique_ptr<GrpcServer>(new GrpcServer(std::move(impl)));
}

bool GrpcServer::exists() {
  return true;
}

uint16_t GrpcServer::port() const {
  return static_cast<uint16_t>(impl_->port);
}

void GrpcServer::wake() {
  impl_->context.wake_calls();
}

void GrpcServer::stop() {
  if (!impl_->server) return;
  const bool answered = impl_->context.state.in_flight == 0;
  impl_->context.stopping = true;
  impl_->context.wake_calls();  // streams that clients keep open for what they may ask later
  impl_->server->Shutdown(std::chrono::system_clock::now() + (answered ? kSendGrace : kStopGrace));
  impl_->server->Wait();
  impl_->server.reset();
}

}  // namespace pinion
