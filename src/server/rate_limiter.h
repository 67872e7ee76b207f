// Who may ask, and how much: API keys with requests and tokens per minute. A key's allowance is a bucket that holds one
// minute's worth and fills evenly; a request needs one whole request and a token count above zero. Tokens are taken
// when a request ends, so that the bucket may go below zero and the next request waits.
#pragma once

#include <chrono>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "server/server.h"

namespace pinion {

class RateLimiter {
 public:
  using Clock = std::chrono::steady_clock;
  explicit RateLimiter(const std::vector<ApiKey>& keys, Clock::time_point now = Clock::now());

  // The index of the key that a header "Authorization: Bearer KEY" carries, -1: none of ours. Compares in time that
  // does not depend on how much of a key was right.
  int find(std::string_view authorization) const;
  // Takes a request from the key's bucket. 0: go on; else the seconds to wait, rounded up.
  int admit(int key, Clock::time_point now = Clock::now());
  void charge(int key, int64_t tokens, Clock::time_point now = Clock::now());

 private:
  struct Bucket {
    double requests = 0, tokens = 0;
    Clock::time_point filled;
  };
  void fill(size_t key, Clock::time_point now);

  const std::vector<ApiKey> keys_;
  std::mutex mutex_;
  std::vector<Bucket> buckets_;
};

}  // namespace pinion
