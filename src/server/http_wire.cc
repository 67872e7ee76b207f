#include "server/http_wire.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/api.h"

namespace pinion {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;

bool is_plain_id(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_' ||
           c == '.';
  });
}

}  // namespace

std::optional<ApiError> check_http_header(const HttpMessage& message, const ServerOptions& options) {
  const auto bad = [](std::string_view what) {
    return ApiError{.message = "malformed HTTP: " + std::string(what), .code = "bad_http"};
  };
  if (message.target().size() > options.max_uri_bytes) {
    return ApiError{.status = 414, .message = "the URI is too long", .code = "uri_too_long"};
  }
  size_t fields = 0;
  for ([[maybe_unused]] const auto& field : message) ++fields;
  if (fields > options.max_headers) {
    return ApiError{.status = 431, .message = "too many header fields", .code = "header_too_large"};
  }
  const size_t hosts = message.count(http::field::host);
  if (hosts > 1 || (hosts == 0 && message.version() >= 11)) return bad("expected one Host field");
  const size_t encodings = message.count(http::field::transfer_encoding);
  if (encodings > 0) {
    if (encodings > 1 || !beast::iequals(message[http::field::transfer_encoding], "chunked")) {
      return bad("Transfer-Encoding is not \"chunked\"");
    }
    if (message.version() < 11 || message.count(http::field::content_length) > 0) {
      return bad("Transfer-Encoding is not allowed here");
    }
  }
  if (message.count(http::field::content_length) > 1) return bad("more than one Content-Length");
  if (message.target().empty() || message.target().front() != '/') {
    if (message.target() != "*") return bad("the target is not a path");
  }
  return {};
}

HttpRequest read_http_request(HttpMessage message) {
  const auto text = [&](http::field field) { return std::string(message[field]); };
  HttpRequest out;
  out.method = std::string(message.method_string());
  out.path = std::string(message.target().substr(0, message.target().find('?')));
  out.content_type = text(http::field::content_type);
  out.content_encoding = text(http::field::content_encoding);
  out.authorization = text(http::field::authorization);
  out.request_id = std::string(message["X-Request-Id"]);
  if (!is_plain_id(out.request_id)) out.request_id = random_id();
  out.traceparent = std::string(message["traceparent"]);
  out.inference_header_length = std::string(message["Inference-Header-Content-Length"]);
  out.body = std::move(message.body());
  return out;
}

std::string encode_response(const HttpResponse& response, const ServerOptions& options, bool keep_alive, bool head_only,
                            std::string_view fields) {
  const auto reason = http::obsolete_reason(static_cast<http::status>(response.status));
  std::string out = fmt::format("HTTP/1.1 {} {}\r\n", response.status, std::string_view(reason.data(), reason.size()));
  if (response.status != 204) {
    out += fmt::format("Content-Type: {}\r\nContent-Length: {}\r\n", response.content_type, response.body.size());
  }
  out += fields;
  for (const auto& [name, value] : response.headers) out += fmt::format("{}: {}\r\n", name, value);
  if (!options.cors_origin.empty()) {
    out += fmt::format(
        "Access-Control-Allow-Origin: {}\r\nAccess-Control-Allow-Headers: *\r\n"
        "Access-Control-Allow-Methods: GET, POST, OPTIONS\r\n",
        options.cors_origin);
  }
  out += fmt::format("Connection: {}\r\n\r\n", keep_alive ? "keep-alive" : "close");
  if (!head_only) out += response.body;
  return out;
}

std::string encode_stream_head(const ServerOptions& options, bool keep_alive, bool http10, std::string_view fields) {
  return fmt::format(
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
      "X-Accel-Buffering: no\r\n{}{}{}Connection: {}\r\n\r\n",
      fields, options.cors_origin.empty() ? "" : "Access-Control-Allow-Origin: " + options.cors_origin + "\r\n",
      http10 ? "" : "Transfer-Encoding: chunked\r\n", keep_alive && !http10 ? "keep-alive" : "close");
}

}  // namespace pinion
