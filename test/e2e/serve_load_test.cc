// The server's own cost and its behaviour beyond capacity, measured over an engine whose every step takes a fixed time:
// what is seen is HTTP, tokenizer, scheduler and text, not a model. PINION_LOAD_SECONDS: how long each load goes on
// (2); from 30 on the limits are those that are promised, of a machine that does nothing else. Short runs have wider
// ones, so that they fail for what is wrong and not for what else the machine does.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <ctime>
#include <deque>
#include <numeric>
#include <thread>

#include "load_client.h"
#include "runtime/engine_loop.h"
#include "runtime/executor.h"
#include "server/engine_service.h"
#include "server/server.h"
#include "text/tokenizer.h"

namespace pinion {
namespace {

using namespace std::chrono_literals;

constexpr int32_t kVocab = 4096;  // of the demo model's tokenizer
constexpr int32_t kBatch = 64;
constexpr int32_t kQueue = 0;  // only those whom the next step has room for: nobody waits for another to end
constexpr std::array kOutputs = {8, 56, 24, 40, 16, 48, 32};  // tokens: so that answers do not end in step
constexpr auto kStep = 20ms;

// Sleeps for a step and gives each sequence a token that depends on its position alone.
class FixedStepExecutor final : public Executor {
 public:
  explicit FixedStepExecutor(std::chrono::microseconds step) : step_(step) {}
  int32_t vocab_size() const override { return kVocab; }
  int32_t context_length() const override { return 4096; }
  int32_t block_size() const override { return 64; }
  std::span<const KvGroupInfo> kv_groups() const override { return groups_; }
  const ExecutorOptions& options() const override { return options_; }
  std::span<const int32_t> eos_token_ids() const override { return {}; }
  uint64_t rope_variant(int32_t) const override { return 0; }
  void copy_block(int32_t, int32_t) override {}
  bool samples() const override { return true; }
  std::span<const float> forward(const Batch& batch) override {
    size_t rows = 0;
    for (const BatchSeq& s : batch.seqs) rows += static_cast<size_t>(s.outputs);
    logits_.assign(rows * kVocab, 0);
    std::this_thread::sleep_for(step_);
    return logits_;
  }
  // A step starts when the one before it has ended, as on a device.
  void issue(const Batch& batch, const StepSampling&) override {
    ends_ = std::max(ends_, std::chrono::steady_clock::now()) + step_;
    Flight& flight = flights_.emplace_back(Flight{.ends = ends_, .tokens = {}});
    for (const BatchSeq& s : batch.seqs) {
      if (s.outputs > 0) flight.tokens.push_back(1000 + (s.past + static_cast<int32_t>(s.tokens.size())) % 500);
    }
  }
  std::span<const int32_t> collect() override {
    std::this_thread::sleep_until(flights_.front().ends);
    tokens_ = std::move(flights_.front().tokens);
    flights_.pop_front();
    return tokens_;
  }

 private:
  const std::chrono::microseconds step_;
  std::vector<KvGroupInfo> groups_{{.window = 0, .layers = 1, .block_bytes = 64}};
  ExecutorOptions options_{.num_blocks = 8192, .max_batch_size = kBatch, .max_num_tokens = 2048};
  struct Flight {
    std::chrono::steady_clock::time_point ends;
    std::vector<int32_t> tokens;
  };
  std::deque<Flight> flights_;
  std::chrono::steady_clock::time_point ends_;
  std::vector<float> logits_;
  std::vector<int32_t> tokens_;
};

struct MockServer {
  explicit MockServer(std::chrono::microseconds step)
      : executor(step),
        tokenizer(*Tokenizer::load(PINION_SOURCE_DIR "/demo")),
        text(tokenizer, nullptr),
        loop(executor, &tokenizer, {.max_batch_size = kBatch, .max_queue = kQueue}),
        generator(loop),
        service{.generator = &generator,
                .text = &text,
                .name = "mock",
                .max_seq_len = loop.options().max_seq_len,
                .vocab_size = kVocab} {
    auto started = Server::start({.port = 0}, service);
    if (!started) throw std::runtime_error(started.error().message);
    server = std::move(*started);
  }
  FixedStepExecutor executor;
  Tokenizer tokenizer;
  ModelText text;
  EngineLoop loop;
  EngineGenerator generator;
  ModelService service;
  std::unique_ptr<Server> server;
};

// The server in a process of its own, so that its processor time is its own.
class ServerProcess {
 public:
  explicit ServerProcess(std::chrono::microseconds step) {
    int ready[2], stay[2];
    EXPECT_EQ(::pipe(ready), 0);
    EXPECT_EQ(::pipe(stay), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(stay[1]);
      MockServer mock(step);
      const uint16_t port = mock.server->port();
      char end = 0;
      if (::write(ready[1], &port, sizeof port) == sizeof port) (void)!::read(stay[0], &end, 1);  // until closed
      ::_exit(0);
    }
    ::close(ready[1]);
    ::close(stay[0]);
    stay_ = stay[1];
    EXPECT_EQ(::read(ready[0], &port_, sizeof port_), static_cast<ssize_t>(sizeof port_)) << "the server did not start";
    ::close(ready[0]);
  }
  ~ServerProcess() {
    ::close(stay_);
    ::waitpid(pid_, nullptr, 0);
  }
  uint16_t port() const { return port_; }
  double cpu_seconds() const {
    clockid_t clock{};
    timespec time{};
    ::clock_getcpuclockid(pid_, &clock);
    ::clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  }

 private:
  pid_t pid_ = -1;
  int stay_ = -1;
  uint16_t port_ = 0;
};

std::string completion(int32_t max_tokens) {
  const std::string body = fmt::format(
      R"({{"model":"mock","prompt":"The quick brown fox jumps over the lazy dog","max_tokens":{},"ignore_eos":true,"stream":true}})",
      max_tokens);
  return fmt::format(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
      body.size(), body);
}

double load_seconds() {
  const char* text = std::getenv("PINION_LOAD_SECONDS");
  return text ? std::max(2.0, std::atof(text)) : 2;
}
bool strict() {
  return load_seconds() >= 30;
}
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
constexpr bool timed = false;  // such a build's times say nothing
#else
constexpr bool timed = true;
#endif

std::vector<double> pick(const std::vector<LoadAnswer>& answers, int status, double LoadAnswer::*field) {
  std::vector<double> out;
  for (const LoadAnswer& a : answers) {
    if (a.status == status) out.push_back(a.*field);
  }
  return out;
}

std::vector<std::string> completions() {
  std::vector<std::string> out;
  for (const int32_t tokens : kOutputs) out.push_back(completion(tokens));
  return out;
}

// A token's text depends on its position alone: answers of one length are equal, and the longest begins with each.
void expect_whole(const std::vector<LoadAnswer>& answers) {
  std::array<std::string, kOutputs.size()> texts;
  for (const LoadAnswer& a : answers) {
    if (a.status != 200) continue;
    EXPECT_LE(a.events, static_cast<size_t>(kOutputs[a.request]) + 2);  // with the end's and [DONE]
    EXPECT_GT(a.events, 2U);
    if (texts[a.request].empty()) texts[a.request] = a.text;
    EXPECT_EQ(a.text, texts[a.request]);
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_FALSE(texts[i].empty()) << kOutputs[i];
    EXPECT_TRUE(texts[1].starts_with(texts[i]) && (i == 1 || texts[i] != texts[1])) << kOutputs[i];
  }
}

TEST(ServeLoad, CostOfAStreamedToken) {
  constexpr int32_t tokens_each = 400;  // long answers: what a request costs once does not count
  ServerProcess server(5ms);
  LoadClient client(server.port(), {completion(tokens_each)});
  client.closed_loop(kBatch, 0);  // warms up
  const double before = server.cpu_seconds();
  const auto start = LoadClock::now();
  const auto answers = client.closed_loop(kBatch, strict() ? load_seconds() : 0);
  const double seconds = std::chrono::duration<double>(LoadClock::now() - start).count();
  const double tokens = static_cast<double>(answers.size()) * tokens_each;
  const double us = (server.cpu_seconds() - before) * 1e6 / tokens;
  fmt::print("{} streams: {:.0f} tokens/s, {:.1f} us of processor time per token\n", kBatch, tokens / seconds, us);
  for (const LoadAnswer& a : answers) {
    ASSERT_EQ(a.status, 200);
    ASSERT_EQ(a.text, answers[0].text);
  }
  if (timed) {
    EXPECT_LE(us, strict() ? 20 : 40) << "of the whole process: HTTP, text, scheduler";
  }
}

TEST(ServeLoad, BehaviourBeyondCapacity) {
  ServerProcess server(kStep);
  LoadClient client(server.port(), completions());
  const auto busy = client.closed_loop(kBatch, load_seconds());
  expect_whole(busy);
  EXPECT_EQ(pick(busy, 200, &LoadAnswer::seconds).size(), busy.size()) << "no more streams than the batch holds";
  std::vector<double> steps;
  for (const LoadAnswer& a : busy) steps.push_back(a.seconds / kOutputs[a.request]);
  const double step = percentile(steps, 50);
  const double capacity =
      kBatch / (step * std::accumulate(kOutputs.begin(), kOutputs.end(), 0.0) / static_cast<double>(kOutputs.size()));
  const auto below = client.open_loop(0.9 * capacity, std::max(load_seconds(), 3.0), 1);
  const auto ttft_below = pick(below, 200, &LoadAnswer::first_token);
  const auto refused_below = pick(below, 429, &LoadAnswer::first_byte).size();
  expect_whole(below);
  EXPECT_LT(static_cast<double>(refused_below), (strict() ? 0.2 : 0.6) * static_cast<double>(below.size()));

  const auto beyond = client.open_loop(10 * capacity, std::max(load_seconds(), 3.0), 2);
  const auto ttft_beyond = pick(beyond, 200, &LoadAnswer::first_token);
  const auto refused = pick(beyond, 429, &LoadAnswer::first_byte);
  expect_whole(beyond);
  EXPECT_EQ(ttft_beyond.size() + refused.size(), beyond.size()) << "neither answered nor told to come again";
  fmt::print(
      "capacity {:.0f} requests/s; time to first token, p50/p99 in ms: at 0.9x {:.0f}/{:.0f}, at 10x {:.0f}/{:.0f}\n",
      capacity, percentile(ttft_below, 50) * 1e3, percentile(ttft_below, 99) * 1e3, percentile(ttft_beyond, 50) * 1e3,
      percentile(ttft_beyond, 99) * 1e3);
  fmt::print("at 0.9x {} of {} refused\n", refused_below, below.size());
  fmt::print("at 10x {} of {} refused, first byte p50/p99/max {:.2f}/{:.2f}/{:.2f} ms\n", refused.size(), beyond.size(),
             percentile(refused, 50) * 1e3, percentile(refused, 99) * 1e3, percentile(refused, 100) * 1e3);
  EXPECT_GT(static_cast<double>(refused.size()), 0.7 * static_cast<double>(beyond.size()));
  EXPECT_GT(static_cast<double>(ttft_beyond.size()), (strict() ? 0.8 : 0.3) * capacity * load_seconds())
      << "overload ate capacity";
  if (!strict() || !timed) {
    EXPECT_LE(percentile(ttft_beyond, 50), 2.0) << "longer than the queue is";
    return;
  }
  EXPECT_LE(percentile(refused, 99), 0.010);
  EXPECT_LE(percentile(ttft_beyond, 99), 1.2 * percentile(ttft_below, 99));
  const auto after = client.open_loop(0.5 * capacity, 5, 3);
  EXPECT_EQ(pick(after, 200, &LoadAnswer::seconds).size(), after.size()) << "refused though the load is over";
}

// kill -9 of a client in the middle of its stream: the kernel closes its socket, and the blocks are free before a
// second step has begun.
TEST(ServeLoad, KilledClientsBlocksAreFreeWithinAStep) {
  MockServer mock(50ms);
  const std::string request = completion(4000);
  const pid_t pid = ::fork();
  if (pid == 0) {
    const int fd = connect_local(mock.server->port());
    (void)!::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
    char bytes[1024];
    while (::recv(fd, bytes, sizeof bytes, 0) > 0) {
    }
    ::_exit(0);
  }
  const auto soon = [&](auto condition) {
    for (int i = 0; i < 5000 && !condition(); ++i) std::this_thread::sleep_for(1ms);
    return condition();
  };
  ASSERT_TRUE(soon([&] { return mock.loop.stats().output_tokens >= 3; }));
  EXPECT_GT(mock.loop.stats().blocks_used, 0);
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  const uint64_t steps = mock.loop.stats().steps;
  ASSERT_TRUE(soon([&] { return mock.loop.stats().blocks_used == 0; }));
  EXPECT_LE(mock.loop.stats().steps, steps + 1);  // the one that ran, and at most one that began as the word came
  EXPECT_EQ(mock.loop.stats().requests_cancelled, 1U);
}

}  // namespace
}  // namespace pinion
