// A small HTTP/1.1 client for measuring servers: one request a connection at a time, the body handed over as it comes.
// Blocking, plain TCP; one thread uses it.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace pinion::cli {

struct Endpoint {
  std::string host, port = "80", path;  // path: what stands behind the host, without a slash at its end
};
Result<Endpoint> parse_url(const std::string& url);  // http://host[:port][/path]; https is refused by name

class HttpStream {
 public:
  explicit HttpStream(Endpoint endpoint, double timeout_seconds = 600)
      : endpoint_(std::move(endpoint)), timeout_(timeout_seconds) {}
  ~HttpStream() { close(); }
  HttpStream(const HttpStream&) = delete;
  HttpStream& operator=(const HttpStream&) = delete;

  // Sends, reads the whole answer, and calls `on_body` with each part of its body. Returns the status. Errors: io.
  Result<int> request(std::string_view method, std::string_view path, std::string_view body,
                      std::string_view more_header, const std::function<void(std::string_view)>& on_body);

 private:
  Status connect();
  void close();
  Status send_all(std::string_view bytes);
  Status fill();               // more into buffer_
  Result<std::string> line();  // up to CRLF
  Error broken(std::string_view what) const;

  const Endpoint endpoint_;
  const double timeout_;
  int fd_ = -1;
  std::string buffer_;
};

// Cuts a stream of server-sent events into the text behind "data:" of each.
class EventReader {
 public:
  void add(std::string_view bytes, const std::function<void(std::string_view)>& on_data);

 private:
  std::string line_, data_;
};

}  // namespace pinion::cli
