// For tests: a server over fakes on a free port, and a client that writes bytes and reads answers.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/fake_service.h"
#include "server/server.h"

namespace pinion {

using namespace std::chrono_literals;

class Client {
 public:
  explicit Client(uint16_t port, int receive_buffer = 0) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    const timeval limit{.tv_sec = 5, .tv_usec = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Client() { close(); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void half_close() { ::shutdown(fd_, SHUT_WR); }
  void send(std::string_view bytes) {
    EXPECT_EQ(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  // Until `end` is seen or the server closes; "" on 5 s of silence.
  std::string read_until(std::string_view end) {
    while (buffer_.find(end) == std::string::npos && fill()) {
    }
    const size_t at = buffer_.find(end);
    const size_t size = at == std::string::npos ? buffer_.size() : at + end.size();
    std::string out = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return out;
  }
  std::string read_all() {
    while (fill()) {
    }
    return std::exchange(buffer_, {});
  }
  struct Answer {
    int status = 0;
    std::string head, body;
    Json json() const { return parse_json(body, "answer").ok() ? *parse_json(body, "answer") : Json(); }
  };
  Answer answer() {
    Answer out;
    out.head = read_until("\r\n\r\n");
    if (out.head.size() < 12) return out;
    out.status = std::atoi(out.head.c_str() + 9);
    if (out.head.find("Transfer-Encoding: chunked") != std::string::npos) {
      for (;;) {
        const auto size = std::strtoul(read_until("\r\n").c_str(), nullptr, 16);
        while (buffer_.size() < size + 2 && fill()) {
        }
        out.body += buffer_.substr(0, size);
        buffer_.erase(0, size + 2);
        if (size == 0) return out;
      }
    }
    const size_t at = out.head.find("Content-Length: ");
    const size_t size = at == std::string::npos ? 0 : std::strtoul(out.head.c_str() + at + 16, nullptr, 10);
    while (buffer_.size() < size && fill()) {
    }
    out.body = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return out;
  }
  bool closed_by_server() {
    char c;
    return buffer_.empty() && ::recv(fd_, &c, 1, 0) == 0;
  }

 private:
  bool fill() {
    char bytes[4096];
    const ssize_t size = ::recv(fd_, bytes, sizeof bytes, 0);
    if (size > 0) buffer_.append(bytes, static_cast<size_t>(size));
    return size > 0;
  }
  int fd_;
  std::string buffer_;
};

inline std::string get(std::string_view path, std::string_view extra = "", std::string_view method = "GET") {
  return std::string(method) + " " + std::string(path) + " HTTP/1.1\r\nHost: x\r\n" + std::string(extra) + "\r\n";
}
inline std::string post(std::string_view path, std::string_view body, std::string_view extra = "") {
  return "POST " + std::string(path) +
         " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n" + std::string(extra) + "\r\n" + std::string(body);
}

struct ServerTest : testing::Test {
  FakeText text;
  FakeGenerator generator;
  ModelService model{.generator = &generator, .text = &text, .name = "m", .max_seq_len = 100'000, .vocab_size = 257};
  ServerOptions options{.port = 0};
  std::unique_ptr<Server> server;

  void start() {
    auto started = Server::start(options, model);
    ASSERT_TRUE(started.ok()) << started.error().message;
    server = std::move(*started);
  }
  void TearDown() override {
    generator.hold = false;
    server.reset();
  }
  Client::Answer ask(const std::string& bytes) {
    Client client(server->port());
    client.send(bytes);
    return client.answer();
  }
  template <class Condition>
  static bool soon(Condition condition, std::chrono::milliseconds limit = 3000ms) {
    for (const auto end = std::chrono::steady_clock::now() + limit; std::chrono::steady_clock::now() < end;) {
      if (condition()) return true;
      std::this_thread::sleep_for(1ms);
    }
    return condition();
  }
};

}  // namespace pinion
