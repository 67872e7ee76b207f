#include "server/http_message.h"

namespace pinion {
namespace {

std::string_view error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
  }
  return status >= 500 ? "server_error" : "invalid_request_error";
}

int status_of(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
    case Errc::unsupported:
    case Errc::corrupt:
      return 400;
    case Errc::not_found:
      return 404;
    case Errc::exhausted:
      return 429;
    case Errc::cancelled:
      return 503;
    case Errc::io:
    case Errc::internal:
      break;
  }
  return 500;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

}  // namespace

std::string percent_decode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && hex_digit(text[i + 1]) >= 0 && hex_digit(text[i + 2]) >= 0) {
      out += static_cast<char>(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

ApiError api_error(const Error& error, std::string_view param) {
  ApiError out{.status = status_of(error.code), .message = error.message, .param = std::string(param)};
  if (out.status == 429) {
    out.code = "queue_full";
    out.retry_after = 1;
  } else if (out.status == 503) {
    out.code = "cancelled";
    out.retry_after = 1;
  } else if (error.code == Errc::unsupported) {
    out.code = "unsupported";
  }
  return out;
}

ApiError bad_field(std::string_view param, std::string_view what) {
  return {.message = "'" + std::string(param) + "': " + std::string(what),
          .param = std::string(param),
          .code = "invalid_value"};
}

ApiError unsupported_field(std::string_view param, std::string_view what) {
  return {.message = "'" + std::string(param) + "'" + (what.empty() ? "" : " " + std::string(what)) +
                     " is not supported by this server",
          .param = std::string(param),
          .code = "unsupported"};
}

OrderedJson error_json(const ApiError& error) {
  OrderedJson body;
  body["message"] = error.message;
  body["type"] = error_type(error.status);
  body["param"] = error.param.empty() ? OrderedJson(nullptr) : OrderedJson(error.param);
  body["code"] = error.code.empty() ? OrderedJson(nullptr) : OrderedJson(error.code);
  OrderedJson out;
  out["error"] = std::move(body);
  return out;
}

HttpResponse error_response(const ApiError& error) {
  HttpResponse response{.status = error.status, .body = dump(error_json(error))};
  if (error.retry_after > 0) response.headers.emplace_back("Retry-After", std::to_string(error.retry_after));
  return response;
}

std::string dump(const OrderedJson& value) {
  return value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

}  // namespace pinion
