#include "cli/http_stream.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace pinion::cli {
namespace {

constexpr size_t kMostLine = 65536, kMostEvent = size_t{16} << 20;

std::string lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
  return text;
}

}  // namespace

Result<Endpoint> parse_url(const std::string& url) {
  constexpr std::string_view scheme = "http://";
  if (url.starts_with("https://")) {
    return fail(Errc::unsupported, "TLS is not spoken here", url, "measure the server behind its plain port");
  }
  if (!url.starts_with(scheme)) return fail(Errc::invalid_argument, "no URL", url, "write http://host:port");
  const std::string rest = url.substr(scheme.size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  const std::string host = rest.substr(0, slash);
  Endpoint out{.host = host, .port = "80", .path = rest.substr(slash)};
  while (out.path.ends_with('/')) out.path.pop_back();
  if (out.path.ends_with("/v1")) out.path.resize(out.path.size() - 3);  // as OpenAI's clients write base URLs
  const size_t colon = host.rfind(':');
  if (colon != std::string::npos && host.find(']', colon) == std::string::npos) {
    out.host = host.substr(0, colon);
    out.port = host.substr(colon + 1);
  }
  if (out.host.starts_with('[') && out.host.ends_with(']')) out.host = out.host.substr(1, out.host.size() - 2);
  if (out.host.empty() || out.port.empty())
    return fail(Errc::invalid_argument, "no URL", url, "write http://host:port");
  return out;
}

Error HttpStream::broken(std::string_view what) const {
  return fail(Errc::io, what, fmt::format("{}:{}", endpoint_.host, endpoint_.port), "");
}

Status HttpStream::connect() {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(endpoint_.host.c_str(), endpoint_.port.c_str(), &hints, &found) != 0 || found == nullptr) {
    return broken("the host cannot be resolved");
  }
  std::string why = "cannot connect";
  for (const addrinfo* a = found; a != nullptr && fd_ < 0; a = a->ai_next) {
    fd_ = ::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd_ < 0) continue;
    const int on = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const timeval limit{.tv_sec = static_cast<time_t>(timeout_), .tv_usec = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (::connect(fd_, a->ai_addr, a->ai_addrlen) != 0) {
      why = fmt::format("cannot connect: {}", std::strerror(errno));
      close();
    }
  }
  ::freeaddrinfo(found);
  return fd_ < 0 ? Status(broken(why)) : Status();
}

void HttpStream::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  buffer_.clear();
}

Status HttpStream::send_all(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return broken("the connection broke");
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return {};
}

Status HttpStream::fill() {
  std::array<char, 16384> bytes;
  const ssize_t got = ::recv(fd_, bytes.data(), bytes.size(), 0);
  if (got < 0) return broken(errno == EAGAIN ? "no answer in time" : "the connection broke");
  if (got == 0) return broken("the server closed the connection");
  buffer_.append(bytes.data(), static_cast<size_t>(got));
  return {};
}

Result<std::string> HttpStream::line() {
  for (;;) {
    const size_t end = buffer_.find("\r\n");
    if (end != std::string::npos) {
      std::string out = buffer_.substr(0, end);
      buffer_.erase(0, end + 2);
      return out;
    }
    if (buffer_.size() > kMostLine) return broken("a line of the answer is too long");
    PINION_OK(fill());
  }
}

Result<int> HttpStream::request(std::string_view method, std::string_view path, std::string_view body,
                                std::string_view more_header, const std::function<void(std::string_view)>& on_body) {
  const std::string bytes =
      fmt::format("{} {}{} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n{}",
                  method, endpoint_.path, path, endpoint_.host, body.size(), more_header, body);
  const bool reused = fd_ >= 0;
  if (!reused) PINION_OK(connect());
  if (!send_all(bytes)) {  // the server may have closed an idle connection
    close();
    PINION_OK(connect());
    PINION_OK(send_all(bytes));
  }
  PINION_TRY(const std::string first, line());
  int status = 0;
  if (first.size() < 12 || !first.starts_with("HTTP/1.")) return broken("the answer is no HTTP");
  std::from_chars(first.data() + 9, first.data() + 12, status);
  bool chunked = false, ends = false;
  size_t length = 0;
  for (;;) {
    PINION_TRY(const std::string field, line());
    if (field.empty()) break;
    const size_t colon = std::min(field.find(':'), field.size());
    const std::string name = lower(field.substr(0, colon));
    std::string value = colon < field.size() ? lower(field.substr(colon + 1)) : "";
    value.erase(0, std::min(value.find_first_not_of(' '), value.size()));
    if (name == "transfer-encoding") chunked = value == "chunked";
    if (name == "content-length") std::from_chars(value.data(), value.data() + value.size(), length);
    if (name == "connection") ends = value == "close";
  }
  const auto take = [&](size_t size) -> Status {  // of a body's part, as it comes
    while (size > 0) {
      if (buffer_.empty()) PINION_OK(fill());
      const size_t now = std::min(size, buffer_.size());
      on_body(std::string_view(buffer_).substr(0, now));
      buffer_.erase(0, now);
      size -= now;
    }
    return {};
  };
  if (!chunked) {
    PINION_OK(take(length));
  } else {
    for (;;) {
      PINION_TRY(const std::string head, line());
      size_t size = 0;
      const auto [end, errc] = std::from_chars(head.data(), head.data() + head.size(), size, 16);
      if (errc != std::errc()) return broken("a chunk has no size");
      PINION_OK(take(size));
      PINION_TRY(const std::string rest, line());
      if (size == 0) break;
    }
  }
  if (ends) close();
  return status;
}

void EventReader::add(std::string_view bytes, const std::function<void(std::string_view)>& on_data) {
  for (const char c : bytes) {
    if (c != '\n') {
      if (line_.size() < kMostEvent) line_ += c;
      continue;
    }
    if (line_.ends_with('\r')) line_.pop_back();
    if (line_.empty()) {
      if (!data_.empty()) on_data(data_);
      data_.clear();
    } else if (line_.starts_with("data:")) {
      data_ += std::string_view(line_).substr(line_.starts_with("data: ") ? 6 : 5);
    }
    line_.clear();
  }
}

}  // namespace pinion::cli
