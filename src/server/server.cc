#include "server/server.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "server/connection.h"
#include "server/grpc_server.h"
#include "server/http_wire.h"

namespace pinion {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr auto use_tuple = asio::as_tuple(asio::use_awaitable);
constexpr std::chrono::milliseconds accept_pause{100};  // after an error such as no descriptors left
constexpr std::chrono::milliseconds drain_poll{10}, stall_poll{1000};
constexpr std::chrono::milliseconds last_words{2000};  // for what a drain's limit cuts off: each request is told

}  // namespace

struct Server::Impl {
  template <class Models>
  Impl(ServerOptions options, Models&& models)
      : state(std::move(options), std::forward<Models>(models)),
        acceptor(asio::make_strand(context)),
        metrics_acceptor(acceptor.get_executor()) {}

  Status open() {
    const ServerOptions& o = state.options;
    if (!o.access_log.empty()) {
      PINION_TRY(state.access_log, AccessLog::open(o.access_log));
    }
    if (!o.otlp_traces_endpoint.empty()) {
      PINION_TRY(state.spans, SpanExporter::start({.endpoint = o.otlp_traces_endpoint}));
    }
    if (o.tls_certificate.empty() != o.tls_key.empty()) {
      return fail(Errc::invalid_argument, "TLS needs a certificate and its key", "--tls_certificate, --tls_key",
                  "give both");
    }
    if (!o.tls_key.empty()) {
      PINION_TRY(state.tls, TlsContext::load(o.tls_certificate, o.tls_key));
    }
    PINION_OK(listen());
    if (o.grpc_port) {
      PINION_TRY(grpc, GrpcServer::start(grpc_context));
    }
    run();
    return {};
  }

  Status listen() {
    PINION_OK(listen(acceptor, state.options.port, "--port"));
    return state.options.metrics_port ? listen(metrics_acceptor, *state.options.metrics_port, "--metrics_port")
                                      : Status();
  }

  Status listen(tcp::acceptor& acceptor, uint16_t port, std::string_view flag) {
    const ServerOptions& options = state.options;
    error_code ec;
    const std::string where = fmt::format("{}:{}", options.host, port);
    tcp::resolver resolver(context);
    const auto found = resolver.resolve(options.host, std::to_string(port), tcp::resolver::passive, ec);
    if (ec || found.empty()) {
      return fail(Errc::invalid_argument, "cannot resolve the host", where,
                  "give --host an address of this machine, such as 127.0.0.1");
    }
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor.open(endpoint.protocol(), ec);
    if (!ec) acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) acceptor.bind(endpoint, ec);
    if (!ec) acceptor.listen(asio::socket_base::max_listen_connections, ec);
    if (!ec) return {};
    if (ec == asio::error::address_in_use) {
      return fail(Errc::invalid_argument, "the port is in use", where,
                  fmt::format("stop the program that has it, or choose another with {}", flag));
    }
    return fail(Errc::io, "cannot listen: " + ec.message(), where,
                fmt::format("choose another address or port with --host and {}", flag));
  }

  void run() {
    endpoint_port = acceptor.local_endpoint().port();
    asio::co_spawn(acceptor.get_executor(), accept(acceptor, false), asio::detached);
    if (metrics_acceptor.is_open()) {
      metrics_port = metrics_acceptor.local_endpoint().port();
      asio::co_spawn(acceptor.get_executor(), accept(metrics_acceptor, true), asio::detached);
    }
    for (int i = 0; i < std::max(1, state.options.threads); ++i) {
      threads.emplace_back([this] {
        for (;;) {
          try {
            context.run();
            return;
          } catch (const std::exception& e) {  // of one handler; the others go on
            spdlog::error("server thread: {}", e.what());
          }
        }
      });
    }
  }

  asio::awaitable<void> accept(tcp::acceptor& acceptor, bool metrics_only) {
    asio::steady_timer pause(acceptor.get_executor());
    while (acceptor.is_open()) {
      auto [ec, socket] = co_await acceptor.async_accept(asio::make_strand(context), use_tuple);
      if (ec == asio::error::operation_aborted) co_return;
      if (ec) {
        spdlog::warn("cannot accept a connection: {}", ec.message());
        pause.expires_after(accept_pause);
        co_await pause.async_wait(use_tuple);
        continue;
      }
      if (state.connections >= state.options.max_connections) {
        refuse(std::move(socket));
        continue;
      }
      const std::lock_guard lock(mutex);
      if (stopping) co_return;
      std::erase_if(connections, [](const auto& entry) { return entry.expired(); });
      connections.push_back(start_connection(std::move(socket), state, slow, metrics_only));
    }
  }

  // One write that cannot block: a fresh socket's buffer takes so little at once.
  void refuse(tcp::socket socket) {
    error_code ignored;
    socket.non_blocking(true, ignored);
    const std::string answer = encode_response(
        error_response(
            {.status = 503, .message = "too many connections", .code = "too_many_connections", .retry_after = 1}),
        state.options, false, false, {});
    socket.write_some(asio::buffer(answer), ignored);
    socket.shutdown(asio::socket_base::shutdown_send, ignored);
  }

  void stop() {
    {
      std::unique_lock lock(mutex);
      if (stopping) {
        stopped_signal.wait(lock, [&] { return stopped; });
        return;
      }
      stopping = true;
    }
    state.draining = true;
    asio::post(acceptor.get_executor(), [this] {
      error_code ignored;
      acceptor.close(ignored);
      metrics_acceptor.close(ignored);
    });
    {
      const std::lock_guard lock(mutex);
      for (const auto& entry : connections) {
        if (const auto connection = entry.lock()) connection->close();
      }
    }
    if (grpc) grpc->stop();  // while there are threads that write
    slow.finish();
    work.reset();
    for (auto& thread : threads) thread.join();
    const std::lock_guard lock(mutex);
    stopped = true;
    stopped_signal.notify_all();
  }

  ServerState state;
  asio::io_context context;
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  tcp::acceptor acceptor, metrics_acceptor;
  WorkQueue slow;
  GrpcContext grpc_context{.state = state, .slow = slow, .post = [this](std::function<void()> work) {
                             asio::post(context, std::move(work));
                           }};
  std::unique_ptr<GrpcServer> grpc;  // null: that port is not asked for
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable stopped_signal;
  std::vector<std::weak_ptr<Connection>> connections;
  bool stopping = false, stopped = false;
  uint16_t endpoint_port = 0, metrics_port = 0;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() {
  stop();
}

Result<std::unique_ptr<Server>> Server::start(ServerOptions options, ModelSource& source) {
  auto impl = std::make_unique<Impl>(std::move(options), &source);
  PINION_OK(impl->open());
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Result<std::unique_ptr<Server>> Server::start(ServerOptions options, const ModelService& service) {
  check(service.generator && service.text && service.max_seq_len > 0 && service.vocab_size > 0,
        "incomplete ModelService");
  auto impl = std::make_unique<Impl>(std::move(options), service);
  PINION_OK(impl->open());
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

uint16_t Server::port() const {
  return impl_->endpoint_port;
}
uint16_t Server::metrics_port() const {
  return impl_->metrics_port;
}
bool Server::has_grpc() {
  return GrpcServer::exists();
}
uint16_t Server::grpc_port() const {
  return impl_->grpc ? impl_->grpc->port() : 0;
}
void Server::load_models() {
  impl_->state.models.load_all();
}
void Server::set_ready(bool ready) {
  impl_->state.ready = ready;
}

void Server::drain() {
  impl_->state.draining = true;
  const auto start = std::chrono::steady_clock::now();
  const auto limit = impl_->state.options.drain_timeout;
  auto next_look = start + stall_poll;
  while (impl_->state.in_flight > 0) {
    const auto took = std::chrono::steady_clock::now() - start;
    if (limit.count() > 0 && took > limit + last_words) break;
    if (limit.count() > 0 && took > limit && !impl_->state.expired.exchange(true)) {
      spdlog::warn("drain: {} requests did not finish in time and are cancelled", impl_->state.in_flight.load());
      const std::lock_guard lock(impl_->mutex);
      for (const auto& entry : impl_->connections) {
        if (const auto connection = entry.lock()) connection->wake();
      }
      if (impl_->grpc) impl_->grpc->wake();
    }
    if (impl_->grpc && start + took > next_look) {
      impl_->grpc->wake();  // connections have timers of their own
      next_look += stall_poll;
    }
    std::this_thread::sleep_for(drain_poll);
  }
  stop();
}

void Server::stop() {
  impl_->stop();
}

void Server::wait() {
  std::unique_lock lock(impl_->mutex);
  impl_->stopped_signal.wait(lock, [&] { return impl_->stopped; });
}

}  // namespace pinion
