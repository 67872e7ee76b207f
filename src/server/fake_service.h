// For tests: a tokenizer whose tokens are bytes and a generator that writes a given text, one byte a step.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "server/service.h"

namespace pinion {

class FakeText final : public TextCodec {
 public:
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const override {
    std::vector<int32_t> ids;
    if (add_special_tokens) ids.push_back(bos);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    std::string out;
    for (const int32_t id : ids) out += id == bos && skip_special_tokens ? "" : token_bytes(id);
    return out;
  }
  std::string token_bytes(int32_t id) const override {
    return id == bos ? "<s>" : std::string(1, static_cast<char>(id));
  }
  std::string token_name(int32_t id) const override { return token_bytes(id); }
  bool has_chat_template() const override { return chat; }
  ToolFormat tool_format() const override { return tools ? ToolFormat::hermes : ToolFormat::none; }
  bool writes_reasoning() const override { return reasoning; }
  Result<std::string> render(const OrderedJson& messages, const OrderedJson& tool_list, bool add_generation_prompt,
                             const OrderedJson& extra) const override {
    std::string out = tool_list.is_null() ? "" : tool_list.dump() + "\n";
    if (!extra.empty()) out += extra.dump() + "\n";
    for (const OrderedJson& message : messages) {
      if (message["content"] == "raise") return fail(Errc::invalid_argument, "the template raised an exception");
      out += message["role"].get<std::string>() + ":" + message["content"].get<std::string>() + "\n";
    }
    return out + (add_generation_prompt ? "assistant:" : "");
  }

  static constexpr int32_t bos = 256;
  bool chat = true, tools = true, reasoning = false;
};

class FakeGenerator final : public Generator {
 public:
  FakeGenerator() : thread_([this] { run(); }) {}
  ~FakeGenerator() override {
    {
      const std::lock_guard lock(mutex_);
      quit_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  Result<uint64_t> submit(Request request, OutputSink sink) override {
    const std::lock_guard lock(mutex_);
    if (static_cast<int>(running_.size()) >= max_queue)
      return fail(Errc::exhausted, "the queue is full", "", "try again later");
    last_request = request;
    running_.emplace(++tickets_, Running{std::move(request), std::move(sink), {}});
    ++submitted;
    changed_.notify_all();
    return tickets_;
  }
  void cancel(uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    cancels_.push_back(ticket);
    changed_.notify_all();
  }
  LoopStats stats() const override {
    const std::lock_guard lock(mutex_);
    LoopStats out = stats_;
    out.running = static_cast<int32_t>(running_.size());
    return out;
  }
  std::string failure() const override { return dead ? "the device failed" : ""; }

  std::string script = "hello";  // what every request is answered with, then it stops; set before requests come
  std::chrono::milliseconds step{0};
  std::atomic<bool> hold{false};  // no step while true
  std::atomic<bool> dead{false};
  std::atomic<int> submitted{0};
  int max_queue = 1000;
  int fail_after = -1;  // tokens, then the request fails
  bool endless = false;
  Request last_request;

 private:
  struct Running {
    Request request;
    OutputSink sink;
    std::vector<int32_t> tokens;
  };

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return quit_ || !cancels_.empty() || !running_.empty(); });
      if (quit_) return;
      for (const uint64_t ticket : std::exchange(cancels_, {})) {
        const auto it = running_.find(ticket);
        if (it == running_.end()) continue;
        OutputSink sink = std::move(it->second.sink);
        running_.erase(it);
        ++stats_.requests_cancelled;
        lock.unlock();
        sink({.finish = FinishReason::cancelled});
        lock.lock();
      }
      if (!hold) step_all(lock);
      lock.unlock();
      std::this_thread::sleep_for(hold ? std::chrono::milliseconds(1) : step);
      lock.lock();
    }
  }

  void step_all(std::unique_lock<std::mutex>& lock) {
    std::vector<std::pair<OutputSink, OutputPiece>> out;
    for (auto it = running_.begin(); it != running_.end();) {
      Running& r = it->second;
      OutputPiece piece{.prompt_tokens = static_cast<int32_t>(r.request.prompt.size())};
      if (r.tokens.empty() && r.request.sampling.prompt_logprobs >= 0) {
        piece.prompt_logprobs.resize(r.request.prompt.size());
        for (size_t i = 1; i < r.request.prompt.size(); ++i)
          piece.prompt_logprobs[i] = entry(r.request.prompt[i], r.request);
      }
      if (fail_after >= 0 && static_cast<int>(r.tokens.size()) >= fail_after) {
        piece.finish = FinishReason::error;
        piece.error = fail(Errc::internal, "the device failed");
      } else if (!endless && r.tokens.size() == script.size()) {
        piece.finish = FinishReason::stop;
      } else {
        const char c = script[r.tokens.size() % script.size()];
        r.tokens.push_back(static_cast<unsigned char>(c));
        piece.tokens = {r.tokens.back()};
        piece.text = std::string(1, c);
        if (r.request.sampling.logprobs >= 0) piece.logprobs = {entry(r.tokens.back(), r.request)};
        if (static_cast<int32_t>(r.tokens.size()) == r.request.sampling.max_tokens) piece.finish = FinishReason::length;
      }
      piece.output_tokens = static_cast<int32_t>(r.tokens.size());
      ++stats_.steps;
      if (piece.finish == FinishReason::none) {
        out.emplace_back(r.sink, std::move(piece));
        ++it;
      } else {
        piece.queue_seconds = 3;  // as if it had waited so long
        piece.prefill_seconds = 1;
        piece.decode_seconds = 0.5;
        out.emplace_back(std::move(r.sink), std::move(piece));
        ++stats_.requests_finished;
        it = running_.erase(it);
      }
    }
    lock.unlock();
    for (auto& [sink, piece] : out) sink(std::move(piece));
    lock.lock();
  }

  static TokenLogprob entry(int32_t token, const Request& request) {
    TokenLogprob out{.token = token, .logprob = -0.5F};
    for (int32_t i = 0; i < request.sampling.logprobs; ++i)
      out.top.emplace_back((token + i) % 256, -0.5F * static_cast<float>(i + 1));
    return out;
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Running> running_;
  std::vector<uint64_t> cancels_;
  uint64_t tickets_ = 0;
  LoopStats stats_;
  bool quit_ = false;
  std::thread thread_;
};

}  // namespace pinion
