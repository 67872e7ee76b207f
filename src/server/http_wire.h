// HTTP as it travels: from a parsed message to the request that handlers read, refusing what proxies may read in
// another way, and from a response to bytes.
#pragma once

#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "server/http_message.h"
#include "server/server.h"

namespace pinion {

using HttpMessage = boost::beast::http::request<boost::beast::http::string_body>;

// Of a message whose header is complete. Why it is refused; empty: it is not. (RFC 9112: two readings of one request
// are smuggling.)
std::optional<ApiError> check_http_header(const HttpMessage& message, const ServerOptions& options);
// A client's request id that does not fit a header or a log becomes a new one.
HttpRequest read_http_request(HttpMessage message);
// The whole of an answer whose body is at hand, as bytes. `fields`: more header lines, each with its end.
std::string encode_response(const HttpResponse& response, const ServerOptions& options, bool keep_alive, bool head_only,
                            std::string_view fields);
// The head of an answer that is a stream of events; chunked unless the client speaks HTTP/1.0.
std::string encode_stream_head(const ServerOptions& options, bool keep_alive, bool http10, std::string_view fields);

}  // namespace pinion
