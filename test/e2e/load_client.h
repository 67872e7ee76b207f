// For tests: one thread that keeps hundreds of HTTP streams going, as a load generator: it writes the given requests in
// turn and notes when each was sent, when the first byte and the first token came, and what came in all.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace pinion {

using LoadClock = std::chrono::steady_clock;

struct LoadAnswer {
  size_t request = 0;  // which of the client's
  int status = 0;
  double first_byte = 0, first_token = 0, seconds = 0;  // since the request was sent
  size_t events = 0;                                    // lines "data: "
  std::string text;                                     // of the choices, as JSON escapes it
};

inline int connect_local(uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0 || ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error("cannot connect to the server under load");
  }
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

class LoadClient {
 public:
  LoadClient(uint16_t port, std::vector<std::string> requests)
      : port_(port), requests_(std::move(requests)), epoll_(::epoll_create1(0)) {}
  ~LoadClient() {
    for (const auto& c : connections_) ::close(c->fd);
    ::close(epoll_);
  }
  LoadClient(const LoadClient&) = delete;

  // `streams` requests at a time, each followed by the next, for `seconds`; then those that run are waited for.
  std::vector<LoadAnswer> closed_loop(size_t streams, double seconds) {
    const auto end = after(seconds);
    answers_.clear();
    for (size_t begun = 0; begun < streams; ++begun) {  // one after the other: they will not all end at once
      ask();
      pump(LoadClock::now() + std::chrono::milliseconds(2));
    }
    while (open_ > 0) {
      pump(LoadClock::now() + std::chrono::seconds(1));
      while (LoadClock::now() < end && open_ < streams) ask();
    }
    return std::exchange(answers_, {});
  }

  // Requests as a Poisson process of `rate` per second, however many are open.
  std::vector<LoadAnswer> open_loop(double rate, double seconds, uint64_t seed) {
    const auto end = after(seconds);
    answers_.clear();
    std::mt19937_64 random(seed);
    std::exponential_distribution<double> gap(rate);
    auto next = LoadClock::now();
    while (next < end) {
      for (auto now = LoadClock::now(); next <= now && next < end; next += to_duration(gap(random))) ask();
      pump(next);
    }
    while (open_ > 0) pump(LoadClock::now() + std::chrono::seconds(1));
    return std::exchange(answers_, {});
  }

 private:
  struct Connection {
    int fd = -1;
    std::string in;
    size_t scanned = 0;
    LoadClock::time_point sent;
    LoadAnswer answer;
  };
  static LoadClock::duration to_duration(double seconds) {
    return std::chrono::duration_cast<LoadClock::duration>(std::chrono::duration<double>(seconds));
  }
  static LoadClock::time_point after(double seconds) { return LoadClock::now() + to_duration(seconds); }

  void ask() {
    if (idle_.empty()) {
      auto c = std::make_unique<Connection>();
      c->fd = connect_local(port_);
      ::fcntl(c->fd, F_SETFL, O_NONBLOCK);
      epoll_event event{.events = EPOLLIN, .data = {.ptr = c.get()}};
      ::epoll_ctl(epoll_, EPOLL_CTL_ADD, c->fd, &event);
      idle_.push_back(c.get());
      connections_.push_back(std::move(c));
    }
    Connection& c = *idle_.back();
    idle_.pop_back();
    c.in.clear();
    c.scanned = 0;
    c.answer = {.request = asked_++ % requests_.size(), .text = {}};
    const std::string& request = requests_[c.answer.request];
    c.sent = LoadClock::now();
    if (::send(c.fd, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) {
      throw std::runtime_error("the server closed a connection that it had kept alive");
    }
    ++open_;
  }

  void pump(LoadClock::time_point until) {
    const auto left = std::chrono::duration_cast<std::chrono::microseconds>(until - LoadClock::now()).count();
    epoll_event events[64];
    const timespec wait{.tv_sec = left > 0 ? left / 1'000'000 : 0, .tv_nsec = left > 0 ? left % 1'000'000 * 1000 : 0};
    const int count = ::epoll_pwait2(epoll_, events, 64, &wait, nullptr);
    for (int i = 0; i < count; ++i) read(*static_cast<Connection*>(events[i].data.ptr));
  }

  void read(Connection& c) {
    char bytes[16384];
    const ssize_t size = ::recv(c.fd, bytes, sizeof bytes, 0);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) throw std::runtime_error("the server cut a stream after " + c.in);
    const double now = std::chrono::duration<double>(LoadClock::now() - c.sent).count();
    if (c.in.empty()) c.answer.first_byte = now;
    c.in.append(bytes, static_cast<size_t>(size));
    constexpr std::string_view event = "data: ";
    for (size_t at = c.scanned; (at = c.in.find(event, at)) != std::string::npos; c.scanned = at) {
      if (c.answer.events++ == 0) c.answer.first_token = now;
      at += event.size();
    }
    if (!whole(c.in)) return;
    c.answer.seconds = now;
    c.answer.status = std::stoi(c.in.substr(9, 3));
    c.answer.text = texts(c.in);
    answers_.push_back(std::move(c.answer));
    --open_;
    idle_.push_back(&c);
  }

  static bool whole(std::string_view in) {
    if (in.ends_with("\r\n0\r\n\r\n")) return true;
    constexpr std::string_view field = "Content-Length: ";
    const size_t head = in.find("\r\n\r\n"), at = in.find(field);
    if (head == std::string_view::npos || at > head) return false;
    return in.size() == head + 4 + static_cast<size_t>(std::strtoull(in.data() + at + field.size(), nullptr, 10));
  }

  // What stands in "text":"…", as it is escaped: enough to compare answers.
  static std::string texts(std::string_view in) {
    constexpr std::string_view field = "\"text\":\"";
    std::string out;
    for (size_t at = 0; (at = in.find(field, at)) != std::string_view::npos;) {
      at += field.size();
      const size_t begin = at;
      while (at < in.size() && in[at] != '"') at += in[at] == '\\' ? 2 : 1;
      out += in.substr(begin, at - begin);
    }
    return out;
  }

  const uint16_t port_;
  const std::vector<std::string> requests_;
  const int epoll_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<Connection*> idle_;
  std::vector<LoadAnswer> answers_;
  size_t open_ = 0, asked_ = 0;
};

inline double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  return values[std::min(values.size() - 1, static_cast<size_t>(p / 100 * static_cast<double>(values.size())))];
}

}  // namespace pinion
