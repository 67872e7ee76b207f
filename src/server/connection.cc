#include "server/connection.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "base/log.h"
#include "server/answer_account.h"
#include "server/generation.h"
#include "server/http_wire.h"
#include "server/tls.h"

namespace pinion {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;
using std::chrono::milliseconds;

constexpr auto use_tuple = asio::as_tuple(asio::use_awaitable);
constexpr milliseconds gone_poll{50};  // how often a client that has pipelined more is asked whether it is still there
constexpr size_t head_bytes = 4096, body_bytes = 65536;  // of one read: idle connections stay small
constexpr milliseconds linger_time{2000};  // for a refused request's rest, so that the refusal is not lost to a reset

struct Received {
  HttpRequest request;
  bool keep_alive = false;
  bool http10 = false;
  std::optional<ApiError> refusal;  // answered, then the connection is closed
};

class HttpConnection final : public Connection, public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(asio::ip::tcp::socket socket, ServerState& state, WorkQueue& slow, bool metrics_only)
      : state_(state),
        slow_(slow),
        metrics_only_(metrics_only),
        stream_(std::move(socket)),
        wake_(stream_.get_executor()),
        buffer_(state.options.max_header_bytes + body_bytes) {
    ++state_.connections;
    if (state_.tls && !metrics_only_) {
      tls_.emplace(*state_.tls);
      ciphertext_.resize(head_bytes);
    }
  }
  ~HttpConnection() override { --state_.connections; }

  void start() { asio::co_spawn(stream_.get_executor(), run(shared_from_this()), asio::detached); }
  void close() override {
    asio::post(stream_.get_executor(), [self = shared_from_this()] { self->abort(); });
  }
  void wake() override {
    asio::post(stream_.get_executor(), [self = shared_from_this()] { self->wake_.cancel(); });
  }

 private:
  using Self = std::shared_ptr<HttpConnection>;

  asio::awaitable<void> run(Self) {
    error_code ignored;
    stream_.socket().set_option(asio::ip::tcp::no_delay(true), ignored);
    try {
      while (!aborted_ && co_await serve_one()) {
      }
    } catch (const std::exception& e) {
      spdlog::error("connection ended by an internal error: {}", e.what());
    }
    if (generation_) generation_->stop();
    stream_.socket().shutdown(asio::socket_base::shutdown_both, ignored);
    stream_.socket().close(ignored);
  }

  // Reads and answers one request. False: the connection ends here.
  asio::awaitable<bool> serve_one() {
    Received received;
    if (!co_await receive(received)) co_return false;
    ++state_.in_flight;
    struct Leave {
      std::atomic<size_t>& count;
      ~Leave() { --count; }
    } leave{state_.in_flight};
    HttpRequest& request = received.request;
    if (request.request_id.empty()) request.request_id = random_id();  // of what is refused
    const TraceContext trace = continue_trace(request.traceparent, state_.spans != nullptr);
    fields_ = fmt::format("X-Request-Id: {}\r\n", request.request_id);
    if (!trace.header.empty()) fields_ += fmt::format("traceparent: {}\r\n", trace.header);
    AccessRecord record{.request_id = request.request_id, .trace_id = trace.trace_id, .method = request.method};
    if (received.refusal) {
      record.status = received.refusal->status;
      finish_record(record, {}, "refused", -1, ServerMetrics::Clock::now());
      co_await write(encode_response(error_response(*received.refusal), state_.options, false, false, fields_));
      co_await linger();
      co_return false;
    }
    const auto arrival = ServerMetrics::Clock::now();
    Reply reply = handle_safely(request);
    const bool head_only = request.method == "HEAD";
    request.body = std::string();  // a large prompt is not kept for as long as its answer takes
    const int key = state_.access_log ? state_.limiter.find(request.authorization) : -1;
    bool keep = received.keep_alive && !state_.draining;
    if (auto* work = std::get_if<SlowReply>(&reply.content)) reply.content = co_await run_slow(std::move(*work));
    if (auto* response = std::get_if<HttpResponse>(&reply.content)) {
      record.status = response->status;
      // Before it is sent: who has the answer finds it counted.
      finish_record(record, trace, reply.route, key, arrival);
      keep &= co_await write(encode_response(*response, state_.options, keep, head_only, fields_));
    } else {
      auto& generation = std::get<GenerationReply>(reply.content);
      const ModelHandle model = generation.model;  // the record's name is its
      record.model = model->service().name;
      co_await generate(std::move(generation), keep, received.http10, arrival, record);
      finish_record(record, trace, reply.route, key, arrival);
    }
    co_return keep && !aborted_;
  }

  void finish_record(AccessRecord& record, const TraceContext& trace, std::string_view route, int key,
                     ServerMetrics::Clock::time_point arrival) {
    error_code ignored;
    const auto peer = stream_.socket().remote_endpoint(ignored);
    const std::string remote = ignored || !state_.access_log ? std::string() : peer.address().to_string();
    record.remote = remote;
    log_answer(state_, record, trace, route, key, arrival);
  }

  Reply handle_safely(const HttpRequest& request) {
    try {
      return metrics_only_ ? handle_metrics(state_, request) : handle(state_, request);
    } catch (const std::exception& e) {
      spdlog::error("{}: internal error: {}", request.request_id, e.what());
      return {"failed", error_response({.status = 500, .message = "internal error, request " + request.request_id})};
    }
  }

  // The connection waits for the answer, its thread does not.
  asio::awaitable<HttpResponse> run_slow(SlowReply work) {
    struct Outcome {
      std::atomic<bool> done{false};
      HttpResponse response;
    };
    const auto outcome = std::make_shared<Outcome>();
    slow_.push([self = shared_from_this(), work = std::move(work), outcome] {
      outcome->response = work();
      outcome->done = true;
      asio::post(self->stream_.get_executor(), [self] { self->wake_.cancel(); });
    });
    while (!outcome->done && !aborted_) {
      wake_.expires_after(state_.options.ping_interval);
      co_await wake_.async_wait(use_tuple);
    }
    co_return outcome->done ? std::move(outcome->response) : HttpResponse{.status = 503, .body = ""};
  }

  // False: there is no request, or no way to answer it.
  asio::awaitable<bool> receive(Received& out) {
    const ServerOptions& options = state_.options;
    if (buffer_.size() == 0) {
      stream_.expires_after(first_ ? options.header_timeout : options.keep_alive_timeout);
      if (!co_await read_more()) co_return false;
    }
    first_ = false;
    http::request_parser<http::string_body> parser;
    parser.header_limit(static_cast<uint32_t>(options.max_header_bytes));
    parser.body_limit(options.max_body_bytes);
    stream_.expires_after(options.header_timeout);
    error_code ec;
    while (!parser.is_header_done()) {
      if (!parse(parser, ec)) co_return refuse(out, ec);
      if (!parser.is_header_done() && !co_await read_more()) co_return false;
    }
    const auto& message = parser.get();
    out.http10 = message.version() < 11;
    out.keep_alive = message.keep_alive();
    out.refusal = check_http_header(message, state_.options);
    if (out.refusal) co_return true;
    if (!parser.is_done() && beast::iequals(message[http::field::expect], "100-continue")) {
      if (!co_await write("HTTP/1.1 100 Continue\r\n\r\n")) co_return false;
    }
    const auto start = ServerMetrics::Clock::now();
    parser.eager(true);
    for (size_t bytes = buffer_.size();;) {
      if (!parser.is_done() && !parse(parser, ec)) co_return refuse(out, ec);
      if (parser.is_done()) break;
      stream_.expires_at(start + options.body_timeout + std::chrono::seconds(bytes / 1024));
      const size_t before = buffer_.size();
      if (!co_await read_more(body_bytes)) co_return false;
      bytes += buffer_.size() - before;
    }
    stream_.expires_never();
    out.request = read_http_request(parser.release());
    co_return true;
  }

  // Feeds the parser with what has come. False: `ec` says why it is no HTTP, or too large.
  template <class Parser>
  bool parse(Parser& parser, error_code& ec) {
    if (buffer_.size() == 0) return true;
    buffer_.consume(parser.put(buffer_.data(), ec));
    if (ec == http::error::need_more) ec = {};
    return !ec;
  }

  // Appends what the client sends next to buffer_. False: it ended, broke TLS, or the stream's time is over.
  asio::awaitable<bool> read_more(size_t most = head_bytes) {
    if (buffer_.size() == buffer_.max_size()) co_return false;  // a part that never ends, such as a chunk's head
    for (;;) {
      const auto room = buffer_.prepare(std::min(most, buffer_.max_size() - buffer_.size()));
      if (!tls_) {
        const auto [ec, size] = co_await stream_.async_read_some(room, use_tuple);
        buffer_.commit(size);
        co_return !ec;
      }
      const std::ptrdiff_t got = tls_->read(static_cast<char*>(room.data()), room.size());
      const std::string answer = tls_->take();  // of the handshake
      for (size_t done = 0; done < answer.size();) {
        const auto [ec, size] = co_await stream_.async_write_some(asio::buffer(answer) + done, use_tuple);
        if (ec) co_return false;
        done += size;
      }
      if (got < 0) co_return false;
      if (got > 0) {
        buffer_.commit(static_cast<size_t>(got));
        co_return true;
      }
      const auto [ec, size] = co_await stream_.async_read_some(asio::buffer(ciphertext_), use_tuple);
      if (ec) co_return false;
      tls_->put({ciphertext_.data(), size});
    }
  }

  // Whether an error of the parser can be answered; fills the refusal.
  bool refuse(Received& out, const error_code& ec) const {
    if (ec == http::error::body_limit) {
      out.refusal = ApiError{.status = 413,
                             .message = fmt::format("the body has more than {} bytes", state_.options.max_body_bytes),
                             .code = "body_too_large"};
    } else if (ec == http::error::header_limit || ec == http::error::buffer_overflow) {
      out.refusal = ApiError{.status = 431, .message = "the header is too large", .code = "header_too_large"};
    } else if (ec == http::error::end_of_stream || ec == http::error::partial_message) {
      return false;
    } else if (ec.category() == make_error_code(http::error::bad_method).category()) {
      out.refusal = ApiError{.message = "malformed HTTP: " + ec.message(), .code = "bad_http"};
    } else {
      return false;  // timed out or reset
    }
    return true;
  }

  // Each part that the client takes renews the time: only a stall ends the connection.
  asio::awaitable<bool> write(std::string bytes) {
    if (tls_) {
      if (!tls_->write(bytes)) co_return false;
      bytes = tls_->take();
    }
    size_t done = aborted_ ? 0 : write_now(bytes);
    if (done == bytes.size()) co_return true;
    while (done < bytes.size()) {
      if (aborted_) co_return false;
      stream_.expires_after(state_.options.write_timeout);
      const auto [ec, size] = co_await stream_.async_write_some(asio::buffer(bytes) + done, use_tuple);
      if (ec) co_return false;
      done += size;
    }
    stream_.expires_never();
    co_return true;
  }

  // What the socket's buffer takes at once, mostly all: a token costs one system call, no timer and no suspension.
  size_t write_now(std::string_view bytes) {
    const ssize_t size =
        ::send(stream_.socket().native_handle(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    return size > 0 ? static_cast<size_t>(size) : 0;  // an error comes again below, and is told there
  }

  asio::awaitable<void> linger() {
    error_code ignored;
    stream_.socket().shutdown(asio::socket_base::shutdown_send, ignored);
    stream_.expires_after(linger_time);
    std::array<char, 16384> rest;
    for (;;) {
      const auto [ec, size] = co_await stream_.async_read_some(asio::buffer(rest), use_tuple);
      if (ec) break;
    }
  }

  asio::awaitable<void> generate(GenerationReply reply, bool& keep, bool http10,
                                 ServerMetrics::Clock::time_point arrival, AccessRecord& record) {
    ResponseWriter& writer = *reply.writer;
    AnswerAccount account(state_, reply, writer.sequences(), arrival);
    // An answer that does not stream waits for no reader: it is bounded by max_tokens.
    const size_t limit = writer.streams() ? state_.options.max_output_bytes : std::numeric_limits<size_t>::max();
    const auto generation = std::make_shared<Generation>(
        *reply.model->service().generator, limit, [self = shared_from_this(), executor = stream_.get_executor()] {
          asio::post(executor, [self] { self->on_output(); });
        });
    generation_ = generation;
    struct Stop {
      HttpConnection& connection;
      std::shared_ptr<asio::cancellation_signal> watching;
      ~Stop() {
        connection.generation_->stop();
        connection.generation_.reset();
        watching->emit(asio::cancellation_type::terminal);
      }
    } stop{*this, std::make_shared<asio::cancellation_signal>()};
    if (auto started = generation->start(std::move(reply.requests)); !started) {
      account.refused(started.error());
      const HttpResponse response = writer.error(api_error(started.error()));
      record.status = response.status;
      keep &= co_await write(encode_response(response, state_.options, keep, false, fields_));
      co_return;
    }
    asio::co_spawn(stream_.get_executor(), watch(shared_from_this(), generation, stop.watching),
                   asio::bind_cancellation_slot(stop.watching->slot(), asio::detached));

    bool head_sent = false, late = false;
    const auto limit_time = state_.options.request_timeout;
    std::string out;
    while (!writer.done() && !writer.failed()) {
      auto events = generation->take();
      if (aborted_ || generation->overflowed()) break;
      late = state_.expired || (limit_time.count() > 0 && ServerMetrics::Clock::now() - arrival > limit_time);
      if (late) break;
      if (events.empty()) {
        wake_.expires_after(limit_time.count() > 0 ? std::min(state_.options.ping_interval, limit_time)
                                                   : state_.options.ping_interval);
        const auto [ec] = co_await wake_.async_wait(use_tuple);
        if (ec || !writer.streams()) continue;
        out = ": ping\n\n";  // nothing for a while: proxies would give up
      }
      for (auto& event : events) {
        account.add(event.sequence, event.piece);
        writer.add(event.sequence, std::move(event.piece), out);
      }
      if (writer.streams() && !out.empty()) {
        if (!co_await send_events(out, head_sent, keep, http10)) break;
        out.clear();
      }
    }

    using End = AnswerAccount::End;
    account.end(late ? End::late : !writer.done() && !writer.failed() ? End::left : End::answered, writer, record);
    if (late) {
      generation->stop();
      const ApiError error = too_late(state_);
      if (!head_sent) {
        keep &= co_await write(encode_response(writer.error(error), state_.options, keep, false, fields_));
      } else {  // no last chunk: what was sent is not the whole answer
        co_await send_events(writer.error_event(error), head_sent, keep, http10);
        keep = false;
      }
      co_return;
    }
    if (!writer.done() && !writer.failed()) {  // the client went away, or read too slowly
      keep = false;
      co_return;
    }
    if (writer.failed() && !head_sent) {
      keep &= co_await write(encode_response(writer.error(*writer.failed()), state_.options, keep, false, fields_));
      co_return;
    }
    if (!writer.streams()) {
      keep &= co_await write(encode_response(writer.response(), state_.options, keep, false, fields_));
      co_return;
    }
    if (writer.failed()) {  // no [DONE]: what was sent is not the whole answer
      out += writer.error_event(*writer.failed());
    } else {
      writer.end(out);
    }
    const bool sent = co_await send_events(out, head_sent, keep, http10, !writer.failed());
    keep = keep && sent && !http10 && !writer.failed();
  }

  // Events that came together travel in one chunk; before the first goes the head.
  asio::awaitable<bool> send_events(const std::string& events, bool& head_sent, bool keep, bool http10,
                                    bool last = false) {
    std::string bytes;
    if (!head_sent) {
      bytes = encode_stream_head(state_.options, keep, http10, fields_);
      head_sent = true;
    }
    bytes += http10 ? events : fmt::format("{:x}\r\n{}\r\n", events.size(), events);
    if (last && !http10) bytes += "0\r\n\r\n";
    co_return co_await write(std::move(bytes));
  }

  // Notices that the client closes while its answer is made. A pipelined request makes the socket readable for good:
  // then it is asked now and then.
  asio::awaitable<void> watch(Self, std::shared_ptr<Generation> generation,
                              std::shared_ptr<asio::cancellation_signal>) {
    asio::steady_timer timer(stream_.get_executor());
    while (generation_ == generation && !aborted_) {
      const auto [ec] = co_await stream_.socket().async_wait(asio::socket_base::wait_read, use_tuple);
      if (ec || generation_ != generation) co_return;
      if (peer_closed()) co_return abort();
      timer.expires_after(gone_poll);
      const auto [timer_ec] = co_await timer.async_wait(use_tuple);
      if (timer_ec) co_return;
    }
  }

  bool peer_closed() {
    pollfd query{.fd = stream_.socket().native_handle(), .events = POLLRDHUP, .revents = 0};
    return ::poll(&query, 1, 0) > 0 && (query.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
  }

  void on_output() {
    if (generation_ && generation_->overflowed()) return abort();  // a write may hang on this reader
    wake_.cancel();
  }

  void abort() {
    aborted_ = true;
    if (generation_) generation_->stop();  // now, not when the pending write has failed
    error_code ignored;
    stream_.socket().close(ignored);
    wake_.cancel();
  }

  ServerState& state_;
  WorkQueue& slow_;
  const bool metrics_only_;
  beast::tcp_stream stream_;
  asio::steady_timer wake_;
  beast::flat_buffer buffer_;
  std::shared_ptr<Generation> generation_;  // of the request being answered
  std::vector<char> ciphertext_;            // of one read, with TLS
  std::string fields_;                      // of the answer's header: request id and trace
  std::optional<TlsSession> tls_;           // empty: plain HTTP
  bool first_ = true, aborted_ = false;
};

}  // namespace

std::shared_ptr<Connection> start_connection(asio::ip::tcp::socket socket, ServerState& state, WorkQueue& slow,
                                             bool metrics_only) {
  auto connection = std::make_shared<HttpConnection>(std::move(socket), state, slow, metrics_only);
  connection->start();
  return connection;
}

}  // namespace pinion
