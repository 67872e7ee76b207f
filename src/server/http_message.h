// One HTTP request and its answer as plain data, and the error object of the OpenAI API: all that the handlers know of
// HTTP. The wire belongs to connection.cc.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace pinion {

struct HttpRequest {
  std::string method, path;  // path without the query, as sent
  std::string content_type, content_encoding, authorization, request_id;
  std::string traceparent;              // of W3C Trace Context
  std::string inference_header_length;  // of the KServe binary extension; empty: the body is JSON
  std::string body;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
};

struct ApiError {
  int status = 400;
  std::string message;
  std::string param;    // the field that is wrong; empty: null
  std::string code;     // empty: null
  int retry_after = 0;  // seconds; 0: no header
};

ApiError api_error(const Error& error, std::string_view param = {});
ApiError bad_field(std::string_view param, std::string_view what);
ApiError unsupported_field(std::string_view param, std::string_view what = {});
OrderedJson error_json(const ApiError& error);  // {"error":{message,type,param,code}}
HttpResponse error_response(const ApiError& error);

std::string percent_decode(std::string_view text);
// One line; bytes that are not UTF-8 become U+FFFD instead of an exception.
std::string dump(const OrderedJson& value);

}  // namespace pinion
